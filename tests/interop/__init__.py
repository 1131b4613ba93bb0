"""Relay and client of pyderp against programs of other projects."""
