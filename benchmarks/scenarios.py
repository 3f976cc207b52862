"""What is compared: one table. To try other settings of distcnn, change SETTINGS."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What distcnn is given beyond the scenario itself, by precision; every key is one of `distcnn train --help`.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "resnet18": {
        "fp32": {"train.precision": "fp32"},
        "bf16": {"train.precision": "bf16"},
    },
    "simple_cnn": {
        "fp32": {"train.precision": "fp32", "train.micro_batch": 128, "train.gradient_sum": "fp32"},
        "bf16": {"train.precision": "bf16", "train.micro_batch": 128, "train.gradient_sum": "fp32"},
    },
    "tutorial": {
        "fp32": {"train.precision": "fp32"},
        "bf16": {"train.precision": "bf16"},
    },
}

# As they are called in results: a module of contenders/ and a precision.
LABELS = {
    "tutorial fp32": "the tutorial's script",
    "plain fp32": "plain loop, fp32",
    "accelerate fp32": "Accelerate, fp32",
    "timm fp32": "timm's loader in a plain loop, fp32",
    "lightning fp32": "Lightning, fp32",
    "plain bf16": "plain loop, bf16 autocast, channels_last, fused optimizer",
    "lightning bf16": "Lightning, bf16-mixed",
    "distcnn fp32": "distcnn, fp32",
    "distcnn bf16": "distcnn, bf16",
    "fixed bf16": "distcnn, bf16, one fixed batch in memory, no data work",
}
PEERS = tuple(name for name in LABELS if name != "tutorial fp32")


@dataclass(frozen=True)
class Scenario:
    """The same network, global batch, augmentation and optimizer for all contenders."""

    title: str
    network: str  # as model.name
    batch: int  # global; the world size is 1
    warmup: int  # steps
    steps: int  # timed, after the warm-up
    optimizer: str = "sgd"
    augmented: bool = True  # flip, crop after padding by 4
    contenders: tuple[str, ...] = PEERS


SCENARIOS: Mapping[str, Scenario] = {
    "resnet18": Scenario("ResNet-18 (CIFAR stem), batch 128", "resnet18", 128, warmup=3, steps=20),
    "simple_cnn": Scenario("simple_cnn, batch 512", "simple_cnn", 512, warmup=5, steps=60),
    "tutorial": Scenario(
        "the tutorial: simple_cnn, batch 32, Adam, no augmentation", "simple_cnn", 32, warmup=20, steps=400,
        optimizer="adam", augmented=False, contenders=("tutorial fp32", "distcnn fp32", "distcnn bf16"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What one contender is asked to do in its process."""

    name: str  # of the scenario
    precision: str
    root: str  # an image folder
    workers: int  # of a DataLoader
    steps: int  # timed

    @property
    def scenario(self) -> Scenario:
        """The row of the table."""
        return SCENARIOS[self.name]

    @property
    def total(self) -> int:
        """All steps to make."""
        return self.scenario.warmup + self.steps
