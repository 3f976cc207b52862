"""timm's data pipeline in a plain loop: its loader, its uint8 collation, whole batches normalised by its prefetcher."""

from typing import Any

import torch
from timm.data import create_loader
from timm.data.transforms import MaybePILToTensor
from torchvision import transforms

from benchmarks.contenders.plain import train_on
from benchmarks.images import MEAN, SIZE, STD, InMemory, augmentation, on_pil
from benchmarks.scenarios import Job


def train(job: Job) -> None:
    train_on(loader(job.root, job.scenario.batch, job.workers), job)


def loader(root: str, batch: int, workers: int) -> Any:
    made = create_loader(
        InMemory(root, on_pil(True)), (3, SIZE, SIZE), batch, is_training=True, no_aug=True, mean=MEAN, std=STD,
        num_workers=workers, device=torch.device("cpu"),
    )  # fmt: skip
    # timm's own recipes have no padded crop; the rest of its pipeline stays.
    made.dataset.transform = transforms.Compose([*augmentation(), MaybePILToTensor()])
    return made
