"""A small network that remembers each step of a real training, so that a test can do the step again by hand."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import distcnn
from distcnn.config.schema import DataConfig
from distcnn.data.sources import load as sources
from distcnn.training.train import Result
from tests.records import metrics

CLASSES, SIDE, TRAIN, TEST = 5, 8, 22, 9
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)  # fixed, so that a pixel of the input can be turned back into its byte
SETTINGS: dict[str, Any] = {
    "data": {
        "source": "synthetic", "args": {"train": TRAIN, "test": TEST, "classes": CLASSES},
        "image_size": SIDE, "mean": MEAN, "std": STD,
    },
    "optim": {"name": "sgd", "lr": 0.5, "args": {"momentum": 0, "nesterov": False}},
    # An epoch is 12 images in micro-batches of 4, 4, 4, then 10 in 4, 4, 2: their weights differ.
    "train": {"duration": "5step", "batch_size": 12, "micro_batch": 4, "threads": 1},
    "eval": {"every": "100step"},  # and at the end, as checkpoints
    "checkpoint": {"every": "100step"},
    "tracking": {"wandb": "disabled", "console": False, "report": False},
}  # fmt: skip

Weights = dict[str, Tensor]


@dataclass
class Step:
    """What one rank computed in one step."""

    images: list[Tensor] = field(default_factory=list)  # of each micro-batch, [n, 3, H, W], as the network got them
    masks: list[Tensor] = field(default_factory=list)  # of its dropout, [n, features]
    before: Weights = field(default_factory=dict)  # when the optimizer was called
    gradients: Weights = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)  # of each group of parameters
    after: Weights = field(default_factory=dict)  # when the optimizer had returned


@dataclass
class Seen:
    """All that the network and its optimizer did in one run."""

    steps: list[Step] = field(default_factory=list)
    evaluated: list[tuple[Weights, Tensor]] = field(default_factory=list)  # weights and images of each forward
    current: Step = field(default_factory=Step)
    network: nn.Module | None = None

    def forward(self, network: "Net", images: Tensor, mask: Tensor) -> None:
        self.network = network
        if network.training:
            self.current.images.append(images.detach().clone())
            self.current.masks.append(mask.detach().clone())
        else:
            self.evaluated.append((weights_of(network), images.clone()))

    def before(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        assert self.network is not None
        step = self.current
        step.rates = [group["lr"] for group in optimizer.param_groups]
        step.before = weights_of(self.network)
        grads = {name: p.grad for name, p in self.network.named_parameters()}
        step.gradients = {name: g.clone() for name, g in grads.items() if g is not None}

    def after(self, *_: object) -> None:
        assert self.network is not None
        self.current.after = weights_of(self.network)
        self.steps.append(self.current)
        self.current = Step()


class Net(nn.Module):
    """A convolution, the mean over the pixels, dropout, a linear layer; images of any size."""

    seen: Seen | None = None  # the run that is watched

    def __init__(self, num_classes: int = CLASSES, drop: float = 0.0, norm: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.norm(self.conv(x))).mean((2, 3))
        mask = self.drop(torch.ones_like(features))
        if Net.seen is not None and x.device.type != "meta":  # where shapes are tried out
            Net.seen.forward(self, x, mask)
        return self.head(features * mask)


def weights_of(network: nn.Module) -> Weights:
    return {name: t.detach().clone() for name, t in network.state_dict().items()}


def train(folder: Path, overrides: Mapping[str, Any] | None = None) -> tuple[Result, Seen]:
    """`distcnn.train` on SETTINGS and `overrides`, watched from outside."""
    model = {"model.name": f"{__name__}:Net", "output_dir": str(folder)}
    Net.seen = seen = Seen()
    hooks = [register_optimizer_step_pre_hook(seen.before), register_optimizer_step_post_hook(seen.after)]
    try:
        return distcnn.train(SETTINGS, model | dict(overrides or {})), seen
    finally:
        Net.seen = None
        for hook in hooks:
            hook.remove()


def recorded(num_classes: int, **arguments: Any) -> Net:
    """A Net that writes each step to $BY_HAND/<rank>-<step>.pt: for the ranks of a real launcher."""

    class Written(Seen):
        def after(self, *_: object) -> None:
            super().after()
            rank, folder = os.environ.get("RANK", "0"), Path(os.environ["BY_HAND"])
            torch.save(asdict(self.steps[-1]), folder / f"{rank}-{len(self.steps) - 1}.pt")

    Net.seen = seen = Written()
    register_optimizer_step_pre_hook(seen.before)
    register_optimizer_step_post_hook(seen.after)
    return Net(num_classes, **arguments)


def read_steps(folder: Path, ranks: int) -> list[list[Step]]:
    """What `recorded` has written: the ranks' parts of each step."""
    steps = len(list(folder.glob("0-*.pt")))
    return [[Step(**torch.load(folder / f"{rank}-{i}.pt")) for rank in range(ranks)] for i in range(steps)]


def raw(split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """The bytes of the images, [N, 3, H, W], and their labels, [N]."""
    settings = {key: value for key, value in SETTINGS["data"].items() if key not in ("mean", "std")}
    data = sources.load(DataConfig(**settings), split)
    return data.images.transpose(0, 3, 1, 2), data.labels


def normalised(images: np.ndarray) -> np.ndarray:
    """[n, 3, H, W] bytes → what a network should get."""
    mean, std = (np.array(numbers)[:, None, None] for numbers in (MEAN, STD))
    return (images / 255 - mean) / std


def as_bytes(images: Tensor) -> np.ndarray:
    """[n, 3, H, W], normalised → bytes; of images that are no bytes, such as mixed ones, an error."""
    mean, std = (np.array(numbers)[:, None, None] for numbers in (MEAN, STD))
    exact = (images.double().numpy() * std + mean) * 255
    assert np.abs(exact - exact.round()).max() < 1e-3
    return exact.round().astype(np.uint8)


def rows_of(images: Tensor) -> np.ndarray:
    """Which of the training images these are, unaugmented: [n] numbers."""
    known = {image.tobytes(): row for row, image in enumerate(raw()[0])}
    return np.array([known[image.tobytes()] for image in as_bytes(images)])


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.eye(CLASSES)[labels]


def cross_entropy(weights: Weights, images: Tensor, targets: np.ndarray, **arguments: Any) -> float:
    """-Σ q log p, the mean over the images, in float64; `targets` q is [n, classes]."""
    network = Net(**arguments).double()
    network.load_state_dict(weights)
    with torch.no_grad():
        logits = network.eval()(images.double()).numpy()
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    return float(-(targets * log_p).sum(axis=1).mean())


def gradient(weights: Weights, images: Tensor, labels: np.ndarray) -> Net:
    """A network with these weights, in float64, whose gradients are those of the mean loss over the images."""
    network = Net().double()
    network.load_state_dict(weights)
    F.cross_entropy(network(images.double()), torch.from_numpy(labels)).backward()
    return network


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder, "train")]
