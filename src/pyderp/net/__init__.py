"""Byte streams to a server: look-ups, proxies, TCP, TLS, websockets. Knows nothing of DERP."""
