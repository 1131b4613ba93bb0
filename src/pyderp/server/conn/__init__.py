"""One connection from accept to end, and what all connections of a relay share."""
