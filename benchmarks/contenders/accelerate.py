"""Hugging Face Accelerate."""

from itertools import islice

import torch.nn.functional as F
from accelerate import Accelerator

from benchmarks.images import endless, network, optimizer, usual_batches
from benchmarks.scenarios import Job


def train(job: Job) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if job.precision == "bf16" else "no")
    model = network(job)
    model, optim, loader = accelerator.prepare(model, optimizer(model, job), usual_batches(job))
    for images, labels in islice(endless(loader), job.total):
        loss = F.cross_entropy(model(images), labels)
        optim.zero_grad()
        accelerator.backward(loss)
        optim.step()
