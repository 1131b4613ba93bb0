"""Ways out: one file for each module of `pyderp.net`."""
