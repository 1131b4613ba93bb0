"""The relay's command: one table of flags, the layers that give values, the plan, the run."""
