"""Distributed training of image-classifying CNNs in PyTorch."""

__version__ = "0.1.0"
