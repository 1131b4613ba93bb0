"""DERP maps from outside of the process: files, URLs, headscale, a relay that runs."""
