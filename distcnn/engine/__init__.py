"""What carries a loss to one optimizer step, on one rank or on many."""
