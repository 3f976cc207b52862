"""Builds what a training is made of from a Config and a World, before any rank has met another.

Everything that can be wrong is found here; files are read under locks, not barriers.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch._dynamo.config
import torch._inductor.config
from torch import nn
from torch.optim import Optimizer

from distcnn.checkpoint.resume import find_checkpoint
from distcnn.checkpoint.state import Checkpoint
from distcnn.config.plan import Plan, make_plan
from distcnn.config.schema import Config
from distcnn.config.settings import Settings
from distcnn.data import augment
from distcnn.data.augment.pipeline import Pipeline, build_pipeline
from distcnn.data.loaders.resident import ResidentLoader, check_resident, resident_bytes
from distcnn.data.loaders.streaming import StreamingLoader
from distcnn.data.normalize import Normalize, statistics
from distcnn.data.preprocess import Preprocess
from distcnn.data.samplers import MicroBatchSampler
from distcnn.data.sources import load as sources
from distcnn.data.sources.image_set import ImageSet
from distcnn.data.sources.load import check_classes
from distcnn.distributed import memory
from distcnn.distributed.collectives import check_same
from distcnn.distributed.device import common_device_problems, own_device_problems, set_up_device
from distcnn.distributed.world import World
from distcnn.engine import accelerate as engine_accelerate
from distcnn.engine.accelerate import AccelerateEngine
from distcnn.engine.base import AUTOCAST, Engine
from distcnn.engine.ddp import DDPEngine
from distcnn.models import MODELS
from distcnn.models.build import build_model, check_sizes, forward_flops
from distcnn.optim import OPTIMIZERS, SCHEDULES
from distcnn.optim.optimizers import make_optimizer
from distcnn.optim.schedules import Schedule
from distcnn.registry import Problem
from distcnn.runs.folder import unwritable
from distcnn.tracking import open as tracking

# Of a network, at most: one for each size of image and batch. With PyTorch's own limit, 8, the rest run uncompiled.
_GRAPHS = 64
INIT_PIXELS = 5000 * 32 * 32  # so much of the training images a model with `init_from_images` sees, at most


@dataclass(frozen=True)
class Parts:
    """All that a training is made of, checked and ready, before any rank has met another."""

    device: torch.device
    train_data: ImageSet
    test_data: ImageSet
    normalize: Normalize
    pipeline: Pipeline
    model: nn.Module
    optimizer: Optimizer
    plan: Plan
    schedule: Schedule
    checkpoint: Checkpoint | None  # to go on from; its weights are in the model already
    damaged: list[Path]  # newer checkpoints that were passed over


def engine_of(config: Config, world: World) -> type[Engine]:
    """The engine of a run: `auto` takes Accelerate where `accelerate launch` has started it."""
    wanted = config.engine if config.engine != "auto" else "accelerate" if world.launcher == "accelerate" else "ddp"
    return AccelerateEngine if wanted == "accelerate" else DDPEngine


def environment_problems(config: Config, world: World) -> Iterator[Problem]:
    """What does not fit this machine, besides what is wrong with one rank's device; cheap checks, on every rank."""
    yield from sources.problems(config)
    yield from augment.problems(config)
    yield from common_device_problems(config, world)
    yield from MODELS.problems(config.model.name, config.model.args, config, "model.name", "model.args")
    yield from OPTIMIZERS.problems(config.optim.name, config.optim.args, config, "optim.name", "optim.args")
    schedule = config.schedule
    yield from SCHEDULES.problems(schedule.name, schedule.args, config, "schedule.name", "schedule.args")
    yield from tracking.problems(config)
    if engine_of(config, world) is AccelerateEngine:
        yield from engine_accelerate.problems(config, os.environ)
    if config.checkpoint.resume not in ("auto", "never") and not Path(config.checkpoint.resume).is_file():
        yield ("checkpoint.resume",), "no such file; give auto, never, or the path of a checkpoint"
    if problem := unwritable(Path(config.output_dir)):
        yield ("output_dir",), problem


def checked(settings: Settings, world: World) -> Config:
    """A run's settings, with what Accelerate's configuration adds, as a Config that fits this machine."""
    if world.launcher == "accelerate":
        for key, value in engine_accelerate.defaults(os.environ).items():
            settings.default(key, value)
    return settings.check(
        world.size,
        environment=lambda config: environment_problems(config, world),
        device=lambda config: own_device_problems(config, world),
    )


def prepare(config: Config, world: World) -> Parts:
    """Read the data, build the model, do the arithmetic. No collective: raises InputError on each rank by itself."""
    device, threads = set_up_device(config, world)
    train_data, test_data = sources.load(config.data, "train"), sources.load(config.data, "test")
    check_classes(train_data, test_data)
    if config.data.loader == "resident":
        check_resident(train_data, device, world)
    image_size = train_data.images.shape[1]
    torch.manual_seed(config.seed)
    classes = len(train_data.classes)
    model = build_model(config.model.name, classes, image_size, config.model.args)
    normalize = _normalize(config, train_data)
    if callable(init := getattr(model, "init_from_images", None)):
        # Evenly: a folder's images are sorted by class.
        chosen = train_data.images[:: -(-len(train_data) * image_size**2 // INIT_PIXELS)]
        init(Preprocess(normalize, torch.device("cpu")).input(torch.from_numpy(chosen)))
    plan = make_plan(
        config,
        train_images=len(train_data),
        test_images=len(test_data),
        world_size=world.size,
        parameters=sum(p.numel() for p in model.parameters()),
        forward_flops=forward_flops(model, image_size),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        threads=threads,
    )
    schedule = Schedule(config, plan)
    pipeline = build_pipeline(config.data, classes=classes, image_size=image_size, plan=plan)
    check_sizes(model, config.model.name, classes, pipeline.sizes)
    checkpoint, damaged = find_checkpoint(config, plan, model)
    # Accelerate compiles by itself, with the backend of its own configuration.
    foreign = engine_of(config, world) is AccelerateEngine and engine_accelerate.compiles(os.environ)
    alone = "of this run no more than the network and its optimizer's state is there yet: who else uses it?"
    with memory.explain_out_of_memory(device, lambda: [alone]):
        model = place(model, config, device, compile=config.model.compile and not foreign)
        optimizer = make_optimizer(model, config.optim, plan.lr)
    return Parts(
        device, train_data, test_data, normalize, pipeline, model, optimizer, plan, schedule, checkpoint, damaged,
    )  # fmt: skip


def check_alike(config: Config, world: World, plan: Plan, step: int = 0) -> None:
    """Raise on all ranks if they have come for different runs; devices and threads may differ."""
    own = {"engine": engine_of(config, world).__name__, "checkpoint's step": step, **asdict(plan)}
    check_same({key: own[key] for key in own if key not in ("device", "threads")})


def make_engine(config: Config, world: World, parts: Parts) -> Engine:
    """What carries a loss to an update; inside the process group, where there are other ranks."""
    return engine_of(config, world)(
        parts.model, parts.optimizer, parts.device, config.train.precision, config.train.clip_norm,
        gradient_sum=config.train.gradient_sum, micro_batches=parts.plan.accumulation * parts.plan.world_size,
    )  # fmt: skip


def make_loader(config: Config, world: World, parts: Parts) -> ResidentLoader | StreamingLoader:
    """This rank's training batches."""
    plan, data = parts.plan, config.data
    preprocess = make_preprocess(config, parts.normalize, parts.device)
    sampler = MicroBatchSampler(
        plan.train_images, batch_size=plan.batch_size, micro_batch=plan.micro_batch, rank=world.rank,
        world_size=world.size, seed=config.seed, drop_last=config.train.drop_last,
    )  # fmt: skip
    if data.loader == "resident":
        return ResidentLoader(parts.train_data, sampler, preprocess, parts.pipeline, config.seed)
    return StreamingLoader(parts.train_data, sampler, preprocess, parts.pipeline, config.seed, data.workers)


def training_cures(config: Config, parts: Parts) -> list[str]:
    """The settings of this run by which its steps would take less memory."""
    plan, device = parts.plan, parts.device
    resident = config.data.loader == "resident" and device.type == "cuda"
    return memory.training_cures(
        plan.micro_batch, plan.micro_batch * plan.accumulation, resident_bytes(parts.train_data) if resident else 0
    )


def make_preprocess(config: Config, normalize: Normalize, device: torch.device) -> Preprocess:
    """uint8 images → the network's input, as this run's precision and layout want it."""
    dtype = AUTOCAST[config.train.precision] or torch.float32
    return Preprocess(normalize, device, dtype=dtype, channels_last=config.model.channels_last)


def place(model: nn.Module, config: Config, device: torch.device, *, compile: bool) -> nn.Module:
    """The model on its device, in its layout; compiled in place, which leaves its keys alone."""
    if config.model.sync_batchnorm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    model = model.to(device)
    if config.model.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.model.compile:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
        # Otherwise it times kernels and takes the fastest, which may be another one in another process or rank.
        torch._inductor.config.deterministic = bool(config.train.deterministic)
    if compile:
        # Each shape gets a graph of its own. By default a second size of batch, such as an epoch's last, makes one for
        # any size, which all batches run from then on: slower, and another program than a resumed run's.
        model.compile(dynamic=False)
    return model


def _normalize(config: Config, train: ImageSet) -> Normalize:
    if config.data.mean is not None and config.data.std is not None:
        return Normalize(config.data.mean, config.data.std)
    return statistics(train.images)
