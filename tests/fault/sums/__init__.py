"""The sums: packets that clients sent, that the relay counted, and that clients got must agree."""
