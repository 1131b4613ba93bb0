"""The pages of a relay for people and monitoring: home page, `/debug/` and metrics."""
