"""Floor 3: sockets, tasks and time."""
