"""Bytes and their meaning: one file for each module of `pyderp.wire`."""
