"""Maps from outside: one file for each module of `pyderp.mapio`."""
