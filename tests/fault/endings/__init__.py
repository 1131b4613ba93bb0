"""Ends of everything that begins: each stage with each cause, and nothing is left."""
