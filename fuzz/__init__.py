"""Hostile bytes for every door of pyderp: see `fuzz/README.md`."""
