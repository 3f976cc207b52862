"""Checkpoints: the file, what it holds, writing and resuming."""
