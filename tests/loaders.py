"""Loaders of 26 small images, for the tests of their batches."""

import numpy as np
import torch

from distcnn.data.augment.crop import Crop
from distcnn.data.augment.cutmix import Cutmix
from distcnn.data.augment.cutout import Cutout
from distcnn.data.augment.flip import Flip
from distcnn.data.augment.mixup import Mixup
from distcnn.data.augment.operation import Places
from distcnn.data.augment.pipeline import Pipeline
from distcnn.data.loaders.resident import ResidentLoader
from distcnn.data.loaders.streaming import StreamingLoader
from distcnn.data.normalize import Normalize
from distcnn.data.preprocess import Preprocess
from distcnn.data.samplers import MicroBatchSampler
from distcnn.data.sources.image_set import ImageSet

CPU = torch.device("cpu")
NORMALIZE = Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
N, SIZE = 26, 8
MIXUP, CUTMIX = Mixup(3, 0.4), Cutmix(3, 1.0)
ALL = (Flip(), Crop(2), Cutout(3))
AUGMENTED = {
    "none": (), "cutout": (Cutout(3),), "zeros": ALL, "reflect": (Crop(3, "reflect"), Flip()), "alternating": (Flip(True),),
    "crop": (Crop(2),), "mixup": (MIXUP,), "cutmix": (Flip(), Crop(2), CUTMIX),
}  # fmt: skip


def data():
    rng = np.random.default_rng(0)
    return ImageSet(rng.integers(0, 256, (N, SIZE, SIZE, 3), np.uint8), rng.integers(0, 3, N), ("a", "b", "c"))


def loader(workers=None, operations=(), rank=0, world=1, **options):
    """Resident, or streaming with N workers."""
    sampler = MicroBatchSampler(N, batch_size=12, micro_batch=3, rank=rank, world_size=world, seed=5)
    preprocess, pipeline = Preprocess(NORMALIZE, CPU, **options), Pipeline(operations)
    if workers is None:
        return ResidentLoader(data(), sampler, preprocess, pipeline, 5)
    return StreamingLoader(data(), sampler, preprocess, pipeline, 5, workers)


def drawn(operation, places):
    """What one operation of distcnn's draws, as tensors by their names."""
    pipeline = Pipeline([operation])
    part = pipeline.on_bytes if pipeline.on_bytes.operations else pipeline.on_floats
    (draws,) = part.unpack(part.draw(places))
    return draws


def places(n, seed=5, epoch=0, first=0, height=SIZE, width=SIZE):
    """The images at n positions of an epoch, of which each is the image of that number."""
    rows = np.arange(first, first + n)
    return Places(seed, epoch, rows, rows, height, width)


def same(a, b):
    fields = (a.weight, a.last, a.seed) == (b.weight, b.last, b.seed)
    return fields and torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
