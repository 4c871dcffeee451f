"""The pages of the reference, each made from the part of the code that it is about."""
