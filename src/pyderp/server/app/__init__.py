"""A whole relay: how it is assembled, started, reloaded and stopped."""
