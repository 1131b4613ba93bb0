"""Measures the CPU, memory and latency of DERP relays, side by side."""
