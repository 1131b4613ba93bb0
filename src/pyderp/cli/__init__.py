"""Floor 4: the command line, over the public API."""
