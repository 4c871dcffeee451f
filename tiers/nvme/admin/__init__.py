"""What the command line does with a store: look, remove, check, mend."""
