"""What a run is made of: one frozen dataclass a section. `parse.py` fills them from YAML and the command line.

A type or range stands at the field; whatever needs two fields, or the world they will run in, stands in
conflicts.py. No torch in here, so that `distcnn train --help` stays quick.
"""

import re
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

_SETTINGS = ConfigDict(extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ep|step|img)")


def parse_duration(text: str) -> tuple[float, str]:
    """`"10ep"` → `(10.0, "ep")`; the units are `ep`, `step` and `img`. Raises ValueError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or (match[2] != "ep" and "." in match[1]):
        raise ValueError("a duration is a number and a unit: 10ep, 0.5ep, 500step or 200000img")
    return float(match[1]), match[2]


def _duration(text: str) -> str:
    parse_duration(text)
    return text.strip()


def _some_duration(text: str) -> str:
    if parse_duration(text)[0] == 0:
        raise ValueError("must be longer than zero")
    return text.strip()


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]
Duration = Annotated[str, AfterValidator(_some_duration)]  # longer than zero
DurationOrZero = Annotated[str, AfterValidator(_duration)]
Rgb = tuple[Float, Float, Float]


def named(item: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """An item of a PartList as (name, arguments): `"flip"` → `("flip", {})`. Raises ValueError."""
    if isinstance(item, str):
        return item, {}
    if isinstance(item, Mapping) and len(item) == 1:
        ((name, args),) = item.items()
        if isinstance(name, str) and isinstance(args, Mapping | None):
            return name, dict(args or {})
    raise ValueError("an item is a name, or one name with its arguments: {crop: {padding: 4}}")


def _part_list(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        value = [value]
    return tuple({name: args} if args else name for name, args in map(named, value))


# Parts of a Registry by their names: [flip, {crop: {padding: 4}}].
PartList = Annotated[tuple[str | dict[str, dict[str, Any]], ...], BeforeValidator(_part_list)]


@dataclass(frozen=True, config=_SETTINGS)
class DataConfig:
    """Which images, how they are read, and how they are augmented."""

    source: str = Field(
        default="cifar10",
        description="where the images come from: cifar10, cifar100, folder, digits, synthetic, or "
        "package.module:callable",
    )
    args: dict[str, Any] = Field(default_factory=dict, description="further arguments of the source, as YAML")
    root: str = Field(default="data", description="folder of the images; cifar10 and cifar100 are downloaded into it")
    cache_dir: str | None = Field(
        default=None, description="decoded folders are kept here; default $DISTCNN_CACHE or ~/.cache/distcnn"
    )
    image_size: Int = Field(default=32, ge=4, le=4096, description="folder, synthetic: height and width in pixels")
    max_train: Int | None = Field(
        default=None, ge=1, description="use only so many training images (a fixed random subset)"
    )
    max_test: Int | None = Field(default=None, ge=1, description="use only so many test images (a fixed random subset)")
    holdout: Int = Field(
        default=0,
        ge=0,
        description="keep so many training images (a fixed random subset) out, to be evaluated in "
        "place of the test images; all are read into memory",
    )
    loader: Literal["resident", "streaming"] = Field(
        default="resident",
        description="resident: uint8 images in memory, whole batches at once; streaming: DataLoader",
    )
    workers: Int = Field(default=2, ge=0, le=256, description="streaming: DataLoader processes a rank")
    augment: PartList = Field(
        default=(),
        description="augmentation, done in this order, as [flip, {crop: {padding: 4}}]: flip, crop, randaugment, "
        "cutout, mixup, cutmix, progressive_resize, or package.module:callable",
    )
    mean: Rgb | None = Field(default=None, description="of red, green, blue in 0…1; default: from the training images")
    std: Rgb | None = Field(default=None, description="of red, green, blue in 0…1; default: from the training images")


@dataclass(frozen=True, config=_SETTINGS)
class ModelConfig:
    """The network."""

    name: str = Field(
        default="simple_cnn",
        description="simple_cnn, compact_cnn, resnet9, resnet18, whitened_cnn, a torchvision classifier, or "
        "package.module:callable",
    )
    args: dict[str, Any] = Field(default_factory=dict, description="further keyword arguments for it, as YAML")
    channels_last: bool = Field(default=True, description="NHWC memory layout")
    compile: bool = Field(default=False, description="torch.compile")
    sync_batchnorm: bool = Field(default=False, description="BatchNorm statistics over all ranks (CUDA only)")


@dataclass(frozen=True, config=_SETTINGS)
class LossConfig:
    """What is minimised."""

    name: str = Field(default="cross_entropy", description="cross_entropy, or package.module:callable")
    args: dict[str, Any] = Field(default_factory=dict, description="its own arguments, as label_smoothing")


@dataclass(frozen=True, config=_SETTINGS)
class OptimConfig:
    """The optimizer. BatchNorm parameters and biases get no weight decay."""

    name: str = Field(
        default="sgd",
        description="sgd, adam, adamw, muon (for filters and hidden matrices, with Nesterov SGD for the rest), or "
        "package.module:callable",
    )
    lr: Float = Field(
        default=0.1, gt=0, description="peak learning rate, at optim.base_batch if lr_scaling is not none"
    )
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        default="none", description="lr × (global batch / base_batch)^0|1|½"
    )
    base_batch: Int = Field(default=128, ge=1, description="the global batch that optim.lr was chosen for")
    head_lr: Float | None = Field(default=None, gt=0, description="of the last linear layer's matrix; default: lr")
    bias_lr: Float | None = Field(default=None, gt=0, description="of biases and BatchNorm's parameters; default: lr")
    weight_decay: Float = Field(default=0.0, ge=0, description="L2 term (sgd, adam) or decoupled decay (adamw, muon)")
    args: dict[str, Any] = Field(default_factory=dict, description="the optimizer's own arguments, as momentum of sgd")


@dataclass(frozen=True, config=_SETTINGS)
class ScheduleConfig:
    """The learning rate as a function of the step."""

    name: str = Field(
        default="constant",
        description="shape: constant, linear, step, cosine, onecycle, or package.module:callable",
    )
    warmup: DurationOrZero = Field(default="0step", description="linear rise from zero before it; not for onecycle")
    args: dict[str, Any] = Field(default_factory=dict, description="the schedule's own arguments, as final of cosine")


@dataclass(frozen=True, config=_SETTINGS)
class TrainConfig:
    """Length, batch, precision and device of the training."""

    duration: Duration = Field(default="10ep", description="10ep, 500step or 200000img")
    batch_size: Int = Field(default=128, ge=1, description="the global batch: images per optimizer step over all ranks")
    micro_batch: Int | None = Field(
        default=None,
        ge=1,
        description="images per forward and backward; default: global batch / ranks. Fix it, and the loss curve does "
        "not depend on the number of ranks",
    )
    drop_last: bool = Field(default=False, description="leave out each epoch's last, smaller batch")
    precision: Literal["fp32", "bf16", "bf16-master", "fp16"] = Field(
        default="fp32", description="autocast type; bf16-master: weights in bf16 with fp32 masters; fp16 needs CUDA"
    )
    gradient_sum: Literal["fp64", "fp32"] = Field(
        default="fp64", description="of micro-batches and ranks: fp64 gives the same bits at every world size"
    )
    ema: Float | None = Field(default=None, gt=0, lt=1, description="decay of a moving average of the weights")
    lookahead: Int | None = Field(default=None, ge=2, description="Lookahead: steps between its slow weights' moves")
    lookahead_rate: Float = Field(default=0.5, gt=0, le=1, description="Lookahead: the slow weights' rate")
    clip_norm: Float | None = Field(default=None, gt=0, description="largest norm of the whole gradient")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda where there is one")
    backend: Literal["auto", "nccl", "gloo"] = Field(
        default="auto",
        description="what ranks exchange over; auto: nccl between GPUs, else gloo; gloo lets several ranks share a GPU",
    )
    tf32: bool = Field(default=False, description="CUDA: fp32 products with 10-bit mantissas, several times as fast")
    deterministic: bool | Literal["strict"] = Field(
        default=True,
        description="true: cuDNN's and the compiler's deterministic algorithms; strict: those of all of PyTorch, which "
        "refuses operations that have none; false: the fastest, found by trying",
    )
    threads: Int | None = Field(
        default=None, ge=1, description="CPU threads a rank; default: cores / ranks on this node"
    )
    timeout: Float = Field(default=600, gt=0, description="seconds that a rank waits for the others before it gives up")


@dataclass(frozen=True, config=_SETTINGS)
class EvalConfig:
    """When and how the test images, or those held out, are evaluated."""

    every: Duration = Field(default="1ep", description="and always at the end")
    batch_size: Int = Field(
        default=500, ge=1, description="images per forward on one rank; results do not depend on ranks"
    )
    metrics: PartList = Field(
        default=(),
        description="computed besides accuracy and loss, as [f1, {top_k: {k: 3}}]: top_k, f1, or "
        "package.module:callable",
    )
    views: Literal["one", "mirror", "crops"] = Field(
        default="one", description="test-time augmentation: logits averaged over so many views (1, 2, 6)"
    )


@dataclass(frozen=True, config=_SETTINGS)
class CheckpointConfig:
    """Saving and continuing."""

    every: Duration = Field(default="1ep", description="and always at the end")
    minutes: Float | None = Field(default=None, gt=0, description="and whenever so many have passed since the last one")
    keep: Int = Field(default=2, ge=1, description="the newest so many are kept, and the best")
    resume: str = Field(
        default="never", description="never; auto: the run folder's newest whole one, if any; or a file"
    )
    allow_changes: tuple[str, ...] = Field(
        default=(), description="keys that may differ from those of the checkpoint, for example [optim.weight_decay]"
    )


@dataclass(frozen=True, config=_SETTINGS)
class TrackingConfig:
    """Where metrics go besides metrics.jsonl."""

    log_every: Int = Field(
        default=10, ge=1, description="steps between reading metrics from the device and writing them"
    )
    console: bool = Field(default=True, description="live display on a terminal, one line an epoch elsewhere")
    report: bool = Field(default=True, description="write report.html at the end, where distcnn[report] is installed")
    backends: PartList = Field(
        default=("wandb",),
        description="libraries that get the numbers too: wandb, tensorboard (the run's tensorboard/ folder), trackio "
        "(a local database; `trackio show`), or your own package.module:class",
    )
    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto", description="auto: online with an API key, else offline; disabled without wandb installed"
    )
    project: str = Field(default="distcnn", description="wandb, trackio: the project")
    group: str | None = Field(default=None, description="wandb, trackio: runs that belong together")
    timeout: Float = Field(default=30, gt=0, description="seconds that a stuck backend may hold up the end of a run")


@dataclass(frozen=True, config=_SETTINGS)
class Config:
    """A whole run."""

    name: str | None = Field(
        default=None, description="the run's folder under output_dir; default: the config file's name"
    )
    seed: Int = Field(default=0, ge=0, lt=2**32, description="of weights, order, augmentation and dropout")
    output_dir: str = Field(default="runs", description="where run folders are made")
    engine: Literal["auto", "ddp", "accelerate"] = Field(
        default="auto",
        description="ddp: native DistributedDataParallel; auto: accelerate under `accelerate launch`, else ddp",
    )
    data: DataConfig = field(default_factory=lambda: DataConfig())
    model: ModelConfig = field(default_factory=lambda: ModelConfig())
    loss: LossConfig = field(default_factory=lambda: LossConfig())
    optim: OptimConfig = field(default_factory=lambda: OptimConfig())
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig())
    train: TrainConfig = field(default_factory=lambda: TrainConfig())
    eval: EvalConfig = field(default_factory=lambda: EvalConfig())
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig())
    tracking: TrackingConfig = field(default_factory=lambda: TrackingConfig())
