"""Engines: backward, gradient sum over the ranks, and optimizer step."""
