"""Two runs of different seeds share nothing, nor do two epochs of one run."""

from itertools import combinations

import numpy as np
import torch

from distcnn.config.schema import Config, DataConfig, TrainConfig
from distcnn.data.augment.crop import Crop
from distcnn.data.augment.flip import Flip
from distcnn.data.augment.operation import Places
from distcnn.data.augment.pipeline import Pipeline
from distcnn.data.loaders.resident import ResidentLoader
from distcnn.data.normalize import Normalize
from distcnn.data.preprocess import Preprocess
from distcnn.data.samplers import MicroBatchSampler
from distcnn.data.sources.image_set import ImageSet
from distcnn.distributed.world import World
from distcnn.training.run import Run

IMAGES = 32
PAIRS = [(seed, epoch) for seed in range(50) for epoch in range(50)]


def test_no_two_seeds_or_epochs_share_order_flips_or_dropout():
    pixels = np.arange(IMAGES, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)
    data = ImageSet(pixels, np.arange(IMAGES), ("a", "b"))
    pipeline = Pipeline([Flip(), Crop(1)])
    preprocess = Preprocess(Normalize((0, 0, 0), (1, 1, 1)), torch.device("cpu"))
    orders, flips, crops, seeds = set(), set(), set(), set()
    loaders = [
        ResidentLoader(
            data, MicroBatchSampler(IMAGES, batch_size=32, micro_batch=16, seed=seed), preprocess, pipeline, seed
        )
        for seed in range(50)
    ]
    positions = np.arange(IMAGES)
    for seed, epoch in PAIRS:
        batches = list(loaders[seed].epoch(epoch))  # what a training gets
        orders.add(tuple(torch.cat([batch.labels for batch in batches]).tolist()))
        seeds |= {batch.seed for batch in batches}
        flip, crop = pipeline.on_bytes.unpack(pipeline.on_bytes.draw(Places(seed, epoch, positions, positions, 4, 4)))
        flips.add(tuple(flip["mirrored"].tolist()))
        crops.add((*crop["down"].tolist(), *crop["right"].tolist()))
    assert len(orders) == len(flips) == len(crops) == len(PAIRS)
    assert len(seeds) == 2 * len(PAIRS)


def test_orders_of_neighbouring_seeds_and_epochs_are_unlike():
    """Of two independent orders of n images, 1 place agrees on average, whatever n is."""
    orders = []
    for seed in range(6):
        for epoch in range(6):
            one = MicroBatchSampler(1000, batch_size=10, micro_batch=10, seed=seed)
            one.set_epoch(epoch)
            orders.append(one.order())
    agreeing = [int((a == b).sum()) for a, b in combinations(orders, 2)]  # 630 pairs, each Poisson(1)
    assert 0.8 < sum(agreeing) / len(agreeing) < 1.2
    assert max(agreeing) < 10


def test_seeds_begin_with_other_weights():
    data = DataConfig(source="synthetic", args={"train": 20, "test": 10}, image_size=16)
    weights = []
    for seed in range(5):
        config = Config(seed=seed, data=data, train=TrainConfig(batch_size=10, threads=1))
        weights.append(torch.cat([p.flatten() for p in Run(config, World()).model.parameters()]))
    for a, b in combinations(weights, 2):
        assert (a == b).float().mean() < 0.01
