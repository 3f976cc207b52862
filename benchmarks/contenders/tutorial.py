"""The tutorial's loop as it stands: per-sample transforms, no workers, and a loss read at every step."""

from itertools import islice

from torch import nn

from benchmarks.images import endless, network, optimizer, usual_batches
from benchmarks.scenarios import Job


def train(job: Job) -> None:
    model, criterion = network(job), nn.CrossEntropyLoss()
    optim = optimizer(model, job)
    running_loss = 0.0
    for images, labels in islice(endless(usual_batches(job)), job.total):
        optim.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optim.step()
        running_loss += loss.item()
