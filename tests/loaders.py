"""Loaders of 26 small images, for the tests of their batches."""

import numpy as np
import torch

from distcnn.data.augment.mix import Mix
from distcnn.data.augment.pipeline import Augment, Normalize
from distcnn.data.loaders import Preprocess, ResidentLoader, StreamingLoader
from distcnn.data.samplers import MicroBatchSampler
from distcnn.data.sources.load import ImageSet

CPU = torch.device("cpu")
NORMALIZE = Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
N, SIZE = 26, 8
MIXUP, CUTMIX = Mix("mixup", 0.4, 3), Mix("cutmix", 1.0, 3)
AUGMENTS = [None, Augment(cutout=3), Augment(True, 2, "zeros", 3), Augment(True, 3, "reflect"), Augment("alternating"),
            Augment(mix=MIXUP), Augment(True, 2, mix=CUTMIX)]  # fmt: skip


def data():
    rng = np.random.default_rng(0)
    return ImageSet(rng.integers(0, 256, (N, SIZE, SIZE, 3), np.uint8), rng.integers(0, 3, N), ("a", "b", "c"))


def loader(workers=None, augment=None, rank=0, world=1, **options):
    """Resident, or streaming with so many workers."""
    sampler = MicroBatchSampler(N, batch_size=12, micro_batch=3, rank=rank, world_size=world, seed=5)
    preprocess = Preprocess(NORMALIZE, CPU, augment, **options)
    if workers is None:
        return ResidentLoader(data(), sampler, preprocess, 5)
    return StreamingLoader(data(), sampler, preprocess, 5, workers)


def same(a, b):
    fields = (a.share, a.last, a.seed) == (b.share, b.last, b.seed)
    return fields and torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
