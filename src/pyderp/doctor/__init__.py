"""Checks whether a relay works: small checks of one node, a runner, and their findings."""
