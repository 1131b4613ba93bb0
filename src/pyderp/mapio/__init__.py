"""Loads DERP maps from files, URLs, headscale and running relays, and tries their nodes."""
