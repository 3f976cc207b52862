"""Checkpoints: file format, contents, asynchronous writing and resuming."""
