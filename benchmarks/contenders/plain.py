"""A plain PyTorch loop; in bf16 with what a careful user adds: autocast, channels_last, a fused optimizer."""

from collections.abc import Iterable
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.images import endless, network, optimizer, usual_batches
from benchmarks.scenarios import Job


def train(job: Job) -> None:
    train_on(usual_batches(job), job)


def train_on(loader: Iterable[Any], job: Job) -> None:
    tuned = job.precision == "bf16"
    layout = torch.channels_last if tuned else torch.contiguous_format
    model = network(job).to(memory_format=layout)
    optim = optimizer(model, job, fused=tuned or None)
    for images, labels in islice(endless(loader), job.total):
        with torch.autocast("cpu", torch.bfloat16) if tuned else nullcontext():
            loss = F.cross_entropy(model(images.to(memory_format=layout)), labels)
        optim.zero_grad()
        loss.backward()
        optim.step()
