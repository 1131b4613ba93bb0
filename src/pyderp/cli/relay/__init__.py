"""The relay's command: one table of flags, the layers that set values, the plan, the run."""
