"""Tests of `pyderp.server.mesh`."""
