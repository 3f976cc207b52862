"""What mixup and CutMix have in common: each image is mixed with the one before it in its micro-batch."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from distcnn.config.schema import Config, named
from distcnn.registry import Problem

_MIXING = ("mixup", "cutmix")


def mixed_once(config: Config, args: Mapping[str, Any]) -> Iterator[Problem]:
    """Find operations that would mix images which are mixed already."""
    found = [name for name, _ in map(named, config.data.augment) if name in _MIXING]
    if len(found) > 1:
        yield ("data.augment",), f"{' and '.join(found)}: an image is mixed in one way: give one of them"


def mixed_labels(labels: Tensor, weight: Tensor, classes: int) -> Tensor:
    """Labels [n] int64 and each image's own weight [n] float32 → probabilities [n, classes] float32."""
    one_hot = (labels[:, None] == torch.arange(classes, device=labels.device)).float()
    return torch.lerp(one_hot.roll(1, 0), one_hot, weight[:, None])
