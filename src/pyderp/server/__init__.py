"""The relay on a network: sockets, tasks and time (layer 3)."""
