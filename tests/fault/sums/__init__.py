"""The sums: what clients sent, what the relay counted, and what clients got must agree."""
