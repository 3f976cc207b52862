"""distcnn's own step, on one batch made beforehand: how far the data work keeps it from the network's own speed."""

from collections.abc import Iterator

import distcnn.training.build
from benchmarks.contenders import distcnn as contender
from benchmarks.scenarios import Job
from distcnn.data.loaders.batch import Batch
from distcnn.data.loaders.resident import ResidentLoader


class FixedBatch(ResidentLoader):
    """The first global batch, again and again."""

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        batches = super().epoch(epoch, first_step)
        first = [next(batches)]
        while not first[-1].last:
            first.append(next(batches))
        while True:
            yield from first


def train(job: Job) -> None:
    distcnn.training.build.ResidentLoader = FixedBatch  # type: ignore[misc]
    contender.train(job)
