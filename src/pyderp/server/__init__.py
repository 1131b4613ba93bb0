"""The relay on a network: sockets, tasks and time (floor 3)."""
