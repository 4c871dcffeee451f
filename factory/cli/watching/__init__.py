"""Commands that watch the machine and running servers."""
