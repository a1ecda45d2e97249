"""The command line, and what a notebook shows of a chest."""
