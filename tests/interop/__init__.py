"""Our relay and client against the programs of others."""
