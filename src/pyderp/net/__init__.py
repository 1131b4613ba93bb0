"""Ways out: sockets to a relay through whatever network there is. Knows nothing of DERP."""
