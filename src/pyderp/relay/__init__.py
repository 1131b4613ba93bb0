"""Floor 2: who gets what. Decides, never awaits."""
