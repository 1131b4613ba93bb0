"""The links to the other relays of a mesh."""
