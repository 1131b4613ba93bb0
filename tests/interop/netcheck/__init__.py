"""`pyderp netcheck` beside `tailscale netcheck`, in networks made for that."""
