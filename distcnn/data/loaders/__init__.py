"""Loaders of batches on the training device: resident and streaming for training, and one for evaluation."""
