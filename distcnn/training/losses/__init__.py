"""Losses, one file each. Imports no torch."""

from distcnn.registry import Registry

# A function (logits [n, k] float32, targets, *, arguments) -> [], the mean over the micro-batch; or a class, such as an
# nn.Module, constructed once with its arguments and called like one. Targets are [n] int64 or, for mixed images,
# [n, k] float32 probabilities.
LOSSES = Registry(
    "losses",
    {"cross_entropy": "distcnn.training.losses.cross_entropy:cross_entropy"},
    called_with=2,
    hint="your own package.module:callable such as torch.nn:MultiMarginLoss",
)
