"""What is in memory: the values, their sizes, and which of them leaves next. No I/O, no locks."""
