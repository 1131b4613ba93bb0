"""What must hold when peers stall, send wrong bytes or vanish, and when the relay stops."""
