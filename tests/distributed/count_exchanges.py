"""Run on two ranks: how often does a step of 240 images in micro-batches of 20 exchange gradients?"""

import os

import torch

from distcnn.config.settings import Settings
from distcnn.distributed.world import world_from
from distcnn.training.loop import train_step
from distcnn.training.run import Run

ARGUMENTS = {"data.source": "synthetic", "data.image_size": 16, "train.batch_size": 240, "train.micro_batch": 20,
             "train.threads": 1}  # fmt: skip


def exchanges(run: Run) -> list[float]:
    """Of three steps: gradient elements exchanged, per parameter."""
    run.build()
    exchanged = 0
    all_reduce = torch.distributed.all_reduce

    def counted(tensor, **options):
        nonlocal exchanged
        exchanged += tensor.numel()
        return all_reduce(tensor, **options)

    torch.distributed.all_reduce = counted
    batches = run.loader.epoch(0)
    counts = []
    for _ in range(3):
        exchanged = 0
        train_step(run, batches)
        counts.append(exchanged / run.workload.parameters)
    return counts


world = world_from(os.environ)
run = Run(Settings().update(ARGUMENTS).check(world.size), world)
with run.connected():
    counts = exchanges(run)
if world.is_main:
    print(f"exchanges per update: {counts}")
