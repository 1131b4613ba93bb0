"""DERP maps: regions and nodes, the JSON that describes them, and the node of a relay itself."""
