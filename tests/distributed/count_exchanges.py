"""Run on two ranks: how often does a step of 240 images in micro-batches of 20 exchange gradients?"""

import os

import torch

from distcnn.config.schema import Config
from distcnn.config.settings import Settings
from distcnn.data.augment.pipeline import Pipeline
from distcnn.data.loaders.resident import ResidentLoader
from distcnn.data.normalize import Normalize
from distcnn.data.preprocess import Preprocess
from distcnn.data.samplers import MicroBatchSampler
from distcnn.data.sources.load import load
from distcnn.distributed.rendezvous import process_group
from distcnn.distributed.watchdog import Watchdog
from distcnn.distributed.world import World, world_from
from distcnn.engine.ddp import DDPEngine
from distcnn.models.build import build_model
from distcnn.optim.optimizers import make_optimizer
from distcnn.training.batchnorm import RunningStatistics
from distcnn.training.loop import train_step


def exchanges(world: World, config: Config) -> list[float]:
    """Of three steps: gradient elements exchanged, per parameter."""
    torch.manual_seed(0)
    model = build_model("simple_cnn", 10, 16)
    engine = DDPEngine(model, make_optimizer(model, config.optim, 0.1), torch.device("cpu"), micro_batches=12)
    parameters = sum(p.numel() for p in model.parameters())
    exchanged = 0
    all_reduce = torch.distributed.all_reduce

    def counted(tensor, **options):
        nonlocal exchanged
        exchanged += tensor.numel()
        return all_reduce(tensor, **options)

    torch.distributed.all_reduce = counted
    data = load(config.data, "train")
    sampler = MicroBatchSampler(len(data), batch_size=240, micro_batch=20, rank=world.rank, world_size=world.size)
    preprocess = Preprocess(Normalize((0.5,) * 3, (0.5,) * 3), torch.device("cpu"))
    batches = ResidentLoader(data, sampler, preprocess, Pipeline(), seed=0).epoch(0)
    counts = []
    for _ in range(3):
        exchanged = 0
        train_step(engine, batches, RunningStatistics(model, 12), 0.1, 0.0, Watchdog(World(), None, 60, print))
        counts.append(exchanged / parameters)
    return counts


world = world_from(os.environ)
config: Config = Settings().read_arguments(["--data.source", "synthetic", "--data.image_size", "16"]).check(world.size)
torch.set_num_threads(1)
with process_group(world, device=torch.device("cpu"), timeout_s=60):
    counts = exchanges(world, config)
if world.is_main:
    print(f"exchanges per update: {counts}")
