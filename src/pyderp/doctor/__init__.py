"""Whether a relay works: small checks of one node each, a runner, and what they found."""
