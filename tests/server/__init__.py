"""The part with sockets: on fake transports with an exact clock, and on loopback sockets."""
