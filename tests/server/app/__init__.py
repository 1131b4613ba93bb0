"""Tests of `pyderp.server.app`."""
