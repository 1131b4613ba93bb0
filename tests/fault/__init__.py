"""What must hold when peers stall, lie or vanish, and when the relay stops."""
