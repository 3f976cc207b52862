"""Augmentation operations, one file each, and the rules of their order. Imports no torch."""

from collections.abc import Iterator
from itertools import pairwise

from distcnn.config.schema import Config
from distcnn.config.types import named
from distcnn.registry import Problem, Registry

OPERATIONS = Registry(
    "augmentations",
    {
        "flip": "distcnn.data.augment.flip:Flip",
        "crop": "distcnn.data.augment.crop:Crop",
        "randaugment": "distcnn.data.augment.randaugment:RandAugment",
        "cutout": "distcnn.data.augment.cutout:Cutout",
        "mixup": "distcnn.data.augment.mixup:Mixup",
        "cutmix": "distcnn.data.augment.cutmix:Cutmix",
        "progressive_resize": "distcnn.data.augment.progressive_resize:ProgressiveResize",
    },
    given=("classes", "image_size", "plan"),
)
STAGES = {
    "uint8": "before normalisation",
    "float": "after normalisation",
    "batch": "on batches with their labels",
}


def problems(config: Config) -> Iterator[Problem]:
    """Check `data.augment`: names, arguments and the order of stages."""
    stages = []
    for name, args in map(named, config.data.augment):
        found = [*OPERATIONS.problems(name, args, config, "data.augment")]
        yield from found
        if not found and (stage := getattr(OPERATIONS.load(name), "stage", None)):
            stages.append((name, stage))
    if problem := impossible_order(stages):
        yield ("data.augment",), problem


def impossible_order(stages: list[tuple[str, str]]) -> str:
    """Describe the first (name, stage) operation that follows one of a later stage; "" if the order is valid."""
    order = [*STAGES]
    for name, stage in stages:
        if stage not in STAGES:
            return f"{name}: unknown stage {stage!r}; valid: {', '.join(order)}"
    for (before, later), (name, stage) in pairwise(stages):
        if order.index(stage) < order.index(later):
            return f"{name} works {STAGES[stage]}, {before} {STAGES[later]}: put {name} before {before}"
    return ""
