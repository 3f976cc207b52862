"""Build the components of a run. No communication: what can fail fails here, on each rank alone.

Files are read under locks, not barriers.
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

# Compiled graphs of a network: one per image and batch size. Beyond the limit, 8 by default, they run uncompiled.
_GRAPHS = 64
Loss = Callable[[Tensor, Tensor], Tensor]  # logits [n, k] float32, targets → [], the mean over them
INIT_PIXELS = 5000 * 32 * 32  # at most this many training pixels are passed to `init_from_images`


@dataclass(frozen=True)
class Images:
    """The images of a run, and their normalisation."""

    train: ImageSet
    test: ImageSet  # the evaluated images: the test split, or held out
    normalize: Normalize


def engine_of(config: Config, world: World) -> type[Engine]:
    """Return the engine's class: with `auto`, Accelerate under `accelerate launch`, else DDP."""
    wanted = config.engine if config.engine != "auto" else "accelerate" if world.launcher == "accelerate" else "ddp"
    return AccelerateEngine if wanted == "accelerate" else DDPEngine


def environment_problems(config: Config, world: World) -> Iterator[Problem]:
    """Check the config against this machine, except the rank's own device. Cheap; called on every rank."""
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
    """Return the checked Config, with defaults from Accelerate's configuration. Raises InputError with all problems."""
    if world.launcher == "accelerate":
        for key, value in engine_accelerate.defaults(os.environ).items():
            settings.default(key, value)
    return settings.check(
        world.size,
        environment=lambda config: environment_problems(config, world),
        device=lambda config: own_device_problems(config, world),
    )


def read_images(config: Config, world: World, device: torch.device) -> Images:
    """Read both splits. Raises InputError if their classes differ, or if they do not fit into the device's memory."""
    train, test = sources.load(config.data, "train"), sources.load(config.data, "test")
    check_classes(train, test)
    if config.data.loader == "resident":
        check_resident(train, device, world)
    return Images(train, test, _normalize(config, train))


def build_network(config: Config, images: Images) -> nn.Module:
    """Build the network on the CPU. Its weights depend on the seed, and on the images if it has `init_from_images`."""
    size = images.train.images.shape[1]
    torch.manual_seed(config.seed)
    model = build_model(config.model.name, len(images.train.classes), size, config.model.args)
    if callable(init := getattr(model, "init_from_images", None)):
        # Every nth: a folder's images are sorted by class.
        chosen = images.train.images[:: -(-len(images.train) * size**2 // INIT_PIXELS)]
        init(Preprocess(images.normalize, torch.device("cpu")).input(torch.from_numpy(chosen)))
    return model


def build_plan(config: Config, world: World, images: Images) -> Plan:
    """Compute the plan of the run. Raises InputError."""
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
    """Build the augmentation. Raises InputError if the network does not accept the image sizes that it produces."""
    classes = len(images.train.classes)
    pipeline = build_pipeline(config.data, classes=classes, image_size=images.train.images.shape[1], plan=plan)
    check_sizes(model, config.model.name, classes, pipeline.sizes)
    return pipeline


def build_loss(config: Config, classes: int, device: torch.device) -> Loss:
    """Build the loss, and try it. A Module is moved to the device. Raises InputError if it returns no scalar loss."""
    setting = f"loss.name = {config.loss.name}, loss.args = {config.loss.args}"
    try:
        loss: Loss = LOSSES.bind(config.loss.name, config.loss.args)
        tried = loss(torch.zeros(2, classes, requires_grad=True), torch.tensor([0, 1]))
    except Exception as error:  # user code can raise anything
        raise InputError(f"{setting}: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(tried, Tensor) or tried.shape != () or not tried.requires_grad:
        found = f"{list(tried.shape)}" if isinstance(tried, Tensor) else type(tried).__name__
        raise InputError(
            f"{setting}: should return a mean over the images, of shape [] and with a gradient, not {found}"
        )
    return loss.to(device) if isinstance(loss, nn.Module) else loss


def check_alike(config: Config, world: World, plan: Plan, workload: Workload, step: int) -> None:
    """Raise on all ranks if they were started for different runs; devices and threads may differ."""
    network = {key: one for key, one in asdict(workload).items() if key not in ("device", "threads")}
    evaluation = {"eval.metrics": config.eval.metrics, "eval.batch_size": config.eval.batch_size}
    own = {"engine": engine_of(config, world).__name__, "checkpoint's step": step}
    check_same(own | asdict(plan) | network | evaluation)


def step_options(config: Config, plan: Plan) -> StepOptions:
    """Return the engine's options."""
    train = config.train
    return StepOptions(train.precision, train.clip_norm, train.gradient_sum, plan.micro_batches_per_step)


def training_sampler(config: Config, world: World, plan: Plan) -> MicroBatchSampler:
    """Build the sampler of this rank's training images."""
    return MicroBatchSampler(
        plan.train_images, batch_size=plan.batch_size, micro_batch=plan.micro_batch, rank=world.rank,
        world_size=world.size, seed=config.seed, drop_last=config.train.drop_last,
    )  # fmt: skip


def training_loader(
    config: Config, images: Images, sampler: MicroBatchSampler, preprocess: Preprocess, pipeline: Pipeline
) -> ResidentLoader | StreamingLoader:
    """Build the loader of this rank's training batches."""
    if config.data.loader == "resident":
        return ResidentLoader(images.train, sampler, preprocess, pipeline, config.seed)
    return StreamingLoader(images.train, sampler, preprocess, pipeline, config.seed, config.data.workers)


def memory_fixes(config: Config, plan: Plan, images: Images, device: torch.device) -> list[str]:
    """Return advice: settings of this run that would reduce the memory of a step."""
    resident = config.data.loader == "resident" and device.type == "cuda"
    return memory.training_fixes(
        plan.micro_batch, plan.micro_batch * plan.accumulation, resident_bytes(images.train) if resident else 0
    )


def make_preprocess(config: Config, normalize: Normalize, device: torch.device) -> Preprocess:
    """Build the conversion of uint8 images to the network's input, in the run's precision and layout."""
    dtype = AUTOCAST[config.train.precision] or torch.float32
    return Preprocess(normalize, device, dtype=dtype, channels_last=config.model.channels_last)


def place_model(model: nn.Module, config: Config, world: World, device: torch.device) -> nn.Module:
    """Move the model to the device, and compile it as configured."""
    # Accelerate compiles the model itself, with the backend of its own configuration.
    foreign = engine_of(config, world) is AccelerateEngine and engine_accelerate.compiles(os.environ)
    return place(model, config, device, compile=config.model.compile and not foreign)


def place(model: nn.Module, config: Config, device: torch.device, *, compile: bool) -> nn.Module:
    """Move the model to the device and memory layout. Compiled in place, which does not change its state_dict keys."""
    if config.model.sync_batchnorm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    model = model.to(device)
    if config.model.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.model.compile:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
        # Otherwise Inductor times kernels and takes the fastest, which may differ between processes.
        torch._inductor.config.deterministic = bool(config.train.deterministic)
    if compile:
        # One graph per shape. By default a second batch size, such as an epoch's last, creates a graph for any size,
        # which all later batches use: slower, and another program than a resumed run's.
        model.compile(dynamic=False)
    return model


def _normalize(config: Config, train: ImageSet) -> Normalize:
    if config.data.mean is not None and config.data.std is not None:
        return Normalize(config.data.mean, config.data.std)
    return statistics(train.images)
