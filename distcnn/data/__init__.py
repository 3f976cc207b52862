"""The data pipeline: sources, sampling order, augmentation, and loaders to the training device."""
