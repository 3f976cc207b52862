"""Batches on the training device, one file a loader: of a training, resident or streaming, and of an evaluation."""
