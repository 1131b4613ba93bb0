"""`pyderp netcheck` beside `tailscale netcheck`, in networks built for that."""
