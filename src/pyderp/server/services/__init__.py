"""What a relay answers beside DERP: STUN, and names for bootstrapping."""
