"""Tests of the relay's decisions, without sockets and without a real clock."""
