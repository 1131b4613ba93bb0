"""What holds for all inputs, tried on many."""
