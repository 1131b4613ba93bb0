"""Floor 2: which connection gets what. Decides, never awaits."""
