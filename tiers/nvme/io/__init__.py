"""Every blocking call on data files, and the threads that make them."""
