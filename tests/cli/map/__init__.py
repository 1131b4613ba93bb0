"""`pyderp map`."""
