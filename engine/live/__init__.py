"""Notice boards in shared memory: what the engines of this machine tell about themselves, once a second."""
