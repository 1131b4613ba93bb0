"""A connection from accept to end, and the state that all connections of a relay share."""
