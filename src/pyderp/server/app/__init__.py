"""A whole relay: put together, started, reloaded, stopped."""
