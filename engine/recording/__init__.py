"""A trace of a server's own: which chunks its prompts consist of, salted, without their content."""
