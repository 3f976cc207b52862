"""Shared by mixup and CutMix: each image is mixed with its predecessor in the micro-batch."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from distcnn.config.schema import Config
from distcnn.config.types import named
from distcnn.registry import Problem

_MIXING = ("mixup", "cutmix")


def check_mixed_once(config: Config, args: Mapping[str, Any]) -> Iterator[Problem]:
    """Reject more than one mixing operation."""
    found = [name for name, _ in map(named, config.data.augment) if name in _MIXING]
    if len(found) > 1:
        yield ("data.augment",), f"{' and '.join(found)} exclude each other: give one of them"


def mixed_labels(labels: Tensor, weight: Tensor, classes: int) -> Tensor:
    """Mix labels [n] int64, with weight [n] float32 on each image's own, into probabilities [n, classes] float32."""
    one_hot = (labels[:, None] == torch.arange(classes, device=labels.device)).float()
    return torch.lerp(one_hot.roll(1, 0), one_hot, weight[:, None])
