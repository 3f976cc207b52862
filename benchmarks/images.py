"""The images and what the peers make their batches of: torchvision's transforms, a DataLoader, the optimizer."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from benchmarks.scenarios import Job
from distcnn.config.schema import DataConfig
from distcnn.data.sources.load import load
from distcnn.models.build import build_model

MEAN = STD = (0.5, 0.5, 0.5)
PADDING = 4
SIZE = 32


class InMemory(Dataset[tuple[Any, int]]):
    """As torchvision's CIFAR10: decoded images in memory, each made a PIL image and transformed when asked for."""

    def __init__(self, root: str, transform: Callable[[Any], Any], make: Callable[[Any], Any] = Image.fromarray):
        data = load(DataConfig(source="folder", root=root), "train")
        self.images, self.targets = np.array(data.images), data.labels.tolist()  # a copy: no file is behind it
        self.transform, self.make = transform, make

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.make(self.images[index])), self.targets[index]


def augmentation() -> list[Callable[[Any], Any]]:
    """Padded random crop and flip of one PIL image."""
    return [transforms.RandomCrop(SIZE, padding=PADDING), transforms.RandomHorizontalFlip()]


def on_pil(augmented: bool) -> Callable[[Any], Any]:
    """The usual transforms of CIFAR-10: on a PIL image, then a normalised float tensor."""
    first = augmentation() if augmented else []
    return transforms.Compose([*first, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def on_tensor() -> Callable[[Any], Any]:
    """The same by torchvision's v2 on a uint8 tensor [3, H, W]."""
    return v2.Compose([
        v2.RandomCrop(SIZE, padding=PADDING), v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
    ])  # fmt: skip


def as_tensor(image: np.ndarray) -> Tensor:
    """[H, W, 3] uint8 → [3, H, W], a view."""
    return torch.from_numpy(image).permute(2, 0, 1)


def batches(dataset: InMemory, batch: int, workers: int) -> DataLoader[Any]:
    """Shuffled whole batches; workers outlive the epoch, and start on one intra-op thread each."""
    return DataLoader(dataset, batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0)


def usual_batches(job: Job) -> DataLoader[Any]:
    """What the peers train on."""
    return batches(InMemory(job.root, on_pil(job.scenario.augmented)), job.scenario.batch, job.workers)


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from loader


def network(job: Job) -> nn.Module:
    """The same for all."""
    torch.manual_seed(0)
    return build_model(job.scenario.network, 10, SIZE)


def optimizer(model: nn.Module, job: Job, *, fused: bool | None = None) -> Optimizer:
    """The same for all, in PyTorch's default form unless said otherwise."""
    if job.scenario.optimizer == "adam":
        return Adam(model.parameters(), lr=0.001, fused=fused)
    return SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=fused)
