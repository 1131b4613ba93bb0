"""Admission beside Go's ``derper``, and with a real ``tailscaled``."""
