"""Every blocking call of the NVMe tier, and the threads that make them."""
