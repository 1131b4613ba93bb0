"""Rules about maps."""
