"""Builds what a training is made of from a Config and a World, before any rank has met another.

Everything that can be wrong is found here; files are read under locks, not barriers.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch._dynamo.config
import torch._inductor.config
from torch import Tensor, nn

from distcnn.config.plan import Plan, Workload, make_plan
from distcnn.config.schema import Config
from distcnn.config.settings import Settings
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
from distcnn.distributed.device import common_device_problems, own_device_problems
from distcnn.distributed.world import World
from distcnn.engine import accelerate as engine_accelerate
from distcnn.engine.accelerate import AccelerateEngine
from distcnn.engine.base import Engine, StepOptions
from distcnn.engine.ddp import DDPEngine
from distcnn.engine.master_weights import AUTOCAST
from distcnn.errors import InputError, first_line
from distcnn.models.build import build_model, check_sizes, forward_flops
from distcnn.registry import Problem
from distcnn.runs.folder import unwritable
from distcnn.tracking import open as tracking
from distcnn.training import parts
from distcnn.training.losses import LOSSES

# Of a network, at most: one for each size of image and batch. With PyTorch's own limit, 8, the rest run uncompiled.
_GRAPHS = 64
Loss = Callable[[Tensor, Tensor], Tensor]  # logits [n, k] float32, targets → [], the mean over them
INIT_PIXELS = 5000 * 32 * 32  # so much of the training images a model with `init_from_images` sees, at most


@dataclass(frozen=True)
class Images:
    """A run's images, and how they are normalised."""

    train: ImageSet
    test: ImageSet  # those that are evaluated: of the test split, or held out
    normalize: Normalize


def engine_of(config: Config, world: World) -> type[Engine]:
    """The engine of a run: `auto` takes Accelerate where `accelerate launch` has started it."""
    wanted = config.engine if config.engine != "auto" else "accelerate" if world.launcher == "accelerate" else "ddp"
    return AccelerateEngine if wanted == "accelerate" else DDPEngine


def environment_problems(config: Config, world: World) -> Iterator[Problem]:
    """What does not fit this machine, besides what is wrong with one rank's device; cheap checks, on every rank."""
    yield from sources.problems(config)
    yield from common_device_problems(config, world)
    yield from parts.problems(config)
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


def read_images(config: Config, world: World, device: torch.device) -> Images:
    """Read both splits. Raises InputError where they do not fit together, or where they do not fit on the device."""
    train, test = sources.load(config.data, "train"), sources.load(config.data, "test")
    check_classes(train, test)
    if config.data.loader == "resident":
        check_resident(train, device, world)
    return Images(train, test, _normalize(config, train))


def build_network(config: Config, images: Images) -> nn.Module:
    """Build the network on the CPU, its weights a function of the seed, and of the images where it asks for them."""
    size = images.train.images.shape[1]
    torch.manual_seed(config.seed)
    model = build_model(config.model.name, len(images.train.classes), size, config.model.args)
    if callable(init := getattr(model, "init_from_images", None)):
        # Evenly: a folder's images are sorted by class.
        chosen = images.train.images[:: -(-len(images.train) * size**2 // INIT_PIXELS)]
        init(Preprocess(images.normalize, torch.device("cpu")).input(torch.from_numpy(chosen)))
    return model


def build_plan(config: Config, world: World, images: Images) -> Plan:
    """Do the arithmetic of the run. Raises InputError."""
    return make_plan(config, train_images=len(images.train), test_images=len(images.test), world_size=world.size)


def workload(config: Config, images: Images, model: nn.Module, device: torch.device) -> Workload:
    """Describe what this rank computes, and on what."""
    return Workload(
        parameters=sum(p.numel() for p in model.parameters()),
        forward_flops=forward_flops(model, images.train.images.shape[1]),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        precision=config.train.precision,
        threads=torch.get_num_threads(),
    )


def augmentation(config: Config, plan: Plan, images: Images, model: nn.Module) -> Pipeline:
    """Build it. Raises InputError where the network cannot take the sizes of images that it makes."""
    classes = len(images.train.classes)
    pipeline = build_pipeline(config.data, classes=classes, image_size=images.train.images.shape[1], plan=plan)
    check_sizes(model, config.model.name, classes, pipeline.sizes)
    return pipeline


def build_loss(config: Config, classes: int, device: torch.device) -> Loss:
    """Build the loss, on the device where it has tensors of its own. Raises InputError where it is none."""
    told = f"loss.name = {config.loss.name}, loss.args = {config.loss.args}"
    try:
        loss: Loss = LOSSES.bind(config.loss.name, config.loss.args)
        tried = loss(torch.zeros(2, classes, requires_grad=True), torch.tensor([0, 1]))
    except Exception as error:  # whatever a user's own raises
        raise InputError(f"{told}: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(tried, Tensor) or tried.shape != () or not tried.requires_grad:
        found = f"{list(tried.shape)}" if isinstance(tried, Tensor) else type(tried).__name__
        raise InputError(f"{told}: should return a mean over the images, of shape [] and with a gradient, not {found}")
    return loss.to(device) if isinstance(loss, nn.Module) else loss


def check_alike(config: Config, world: World, plan: Plan, workload: Workload, step: int) -> None:
    """Raise on all ranks if they were started for different runs; devices and threads may differ."""
    network = {"parameters": workload.parameters, "precision": workload.precision}
    check_same({"engine": engine_of(config, world).__name__, "checkpoint's step": step, **network, **asdict(plan)})


def step_options(config: Config, plan: Plan) -> StepOptions:
    """What the engine is told of a step."""
    train = config.train
    return StepOptions(train.precision, train.clip_norm, train.gradient_sum, plan.micro_batches_per_step)


def training_sampler(config: Config, world: World, plan: Plan) -> MicroBatchSampler:
    """Which images this rank takes in each step."""
    return MicroBatchSampler(
        plan.train_images, batch_size=plan.batch_size, micro_batch=plan.micro_batch, rank=world.rank,
        world_size=world.size, seed=config.seed, drop_last=config.train.drop_last,
    )  # fmt: skip


def training_loader(
    config: Config, images: Images, sampler: MicroBatchSampler, preprocess: Preprocess, pipeline: Pipeline
) -> ResidentLoader | StreamingLoader:
    """This rank's training batches."""
    if config.data.loader == "resident":
        return ResidentLoader(images.train, sampler, preprocess, pipeline, config.seed)
    return StreamingLoader(images.train, sampler, preprocess, pipeline, config.seed, config.data.workers)


def memory_fixes(config: Config, plan: Plan, images: Images, device: torch.device) -> list[str]:
    """The settings of this run by which its steps would take less memory."""
    resident = config.data.loader == "resident" and device.type == "cuda"
    return memory.training_fixes(
        plan.micro_batch, plan.micro_batch * plan.accumulation, resident_bytes(images.train) if resident else 0
    )


def make_preprocess(config: Config, normalize: Normalize, device: torch.device) -> Preprocess:
    """uint8 images → the network's input, as this run's precision and layout want it."""
    dtype = AUTOCAST[config.train.precision] or torch.float32
    return Preprocess(normalize, device, dtype=dtype, channels_last=config.model.channels_last)


def place_model(model: nn.Module, config: Config, world: World, device: torch.device) -> nn.Module:
    """The model on its device, compiled as configured."""
    # Accelerate compiles by itself, with the backend of its own configuration.
    foreign = engine_of(config, world) is AccelerateEngine and engine_accelerate.compiles(os.environ)
    return place(model, config, device, compile=config.model.compile and not foreign)


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
