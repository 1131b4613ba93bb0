"""Tests of `pyderp.server.services`."""
