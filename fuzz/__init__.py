"""Fuzzes every parser that reads bytes of a peer: see `fuzz/README.md`."""
