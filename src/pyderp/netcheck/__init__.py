"""What a network lets through to the relays of a DERP map, as Tailscale's client measures it."""
