"""Floor 1: bytes ↔ meaning. No sockets, no clock, no randomness of its own."""
