"""Tests, in the order of the floors of `src/pyderp`."""
