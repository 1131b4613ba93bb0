"""Connections to the outside: one file for each module of `pyderp.net`."""
