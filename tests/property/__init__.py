"""Properties that must hold for all inputs, tested on many."""
