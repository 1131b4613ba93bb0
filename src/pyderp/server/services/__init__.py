"""Services of a relay beside DERP: STUN and bootstrap DNS."""
