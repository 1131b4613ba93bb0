"""The client: a relay's user, on the floor of sockets and tasks."""
