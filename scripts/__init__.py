"""What the Makefile, the git hooks and CI call."""
