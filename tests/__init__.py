"""Tests, in the order of the layers of `src/pyderp`."""
