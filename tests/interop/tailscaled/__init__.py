"""Two real tailscaled daemons that can reach each other only through a DERP relay."""
