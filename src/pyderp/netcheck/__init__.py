"""Measures which relays of a DERP map a network can reach, and how fast, as Tailscale does."""
