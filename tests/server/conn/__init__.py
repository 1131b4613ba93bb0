"""Tests of `pyderp.server.conn`."""
