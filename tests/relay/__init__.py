"""Tests of floor 2: the decisions of the relay, without sockets and without time."""
