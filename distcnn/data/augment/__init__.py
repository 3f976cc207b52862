"""Augmentation: one file an operation."""
