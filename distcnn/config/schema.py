"""The settings of a run: one frozen dataclass per section, each field with its type, range and description.

What involves two fields, or the number of ranks, is checked in `rules`; YAML and command line are read in `settings`.
Imports no torch, so that `distcnn train --help` is quick.
"""

from dataclasses import field
from typing import Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from distcnn.config.types import Duration, DurationOrZero, Float, Int, PartList, Rgb

_SETTINGS = ConfigDict(extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)


@dataclass(frozen=True, config=_SETTINGS)
class DataConfig:
    """Which images, how they are read, and how they are augmented."""

    source: str = Field(
        default="cifar10",
        description="where the images come from: cifar10, cifar100, folder, digits, synthetic, or "
        "package.module:callable",
    )
    args: dict[str, Any] = Field(default_factory=dict, description="the source's own arguments")
    root: str = Field(default="data", description="folder of the images; cifar10 and cifar100 are downloaded into it")
    cache_dir: str | None = Field(
        default=None, description="cache of decoded folders; default: $DISTCNN_CACHE or ~/.cache/distcnn"
    )
    image_size: Int = Field(default=32, ge=4, le=4096, description="folder, synthetic: height and width in pixels")
    max_train: Int | None = Field(
        default=None, ge=1, description="use at most this many training images (a fixed random subset)"
    )
    max_test: Int | None = Field(
        default=None, ge=1, description="use at most this many test images (a fixed random subset)"
    )
    holdout: Int = Field(
        default=0,
        ge=0,
        description="number of training images (a fixed random subset) held out and evaluated instead of the test "
        "images; all are read into memory",
    )
    loader: Literal["resident", "streaming"] = Field(
        default="resident",
        description="resident: uint8 images in memory, batched on the device; streaming: DataLoader",
    )
    workers: Int = Field(default=2, ge=0, le=256, description="streaming: DataLoader processes per rank")
    augment: PartList = Field(
        default=(),
        description="augmentation, applied in this order, such as [flip, {crop: {padding: 4}}]: flip, crop, "
        "randaugment, cutout, mixup, cutmix, progressive_resize, or package.module:callable",
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
    args: dict[str, Any] = Field(default_factory=dict, description="the model's own arguments")
    channels_last: bool = Field(default=True, description="NHWC memory layout")
    compile: bool = Field(default=False, description="torch.compile")
    sync_batchnorm: bool = Field(default=False, description="BatchNorm statistics over all ranks (needs CUDA)")


@dataclass(frozen=True, config=_SETTINGS)
class LossConfig:
    """The loss."""

    name: str = Field(default="cross_entropy", description="cross_entropy, or package.module:callable")
    args: dict[str, Any] = Field(default_factory=dict, description="the loss's own arguments, such as label_smoothing")


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
    args: dict[str, Any] = Field(
        default_factory=dict, description="the optimizer's own arguments, such as momentum of sgd"
    )


@dataclass(frozen=True, config=_SETTINGS)
class ScheduleConfig:
    """The learning rate as a function of the step."""

    name: str = Field(
        default="constant",
        description="shape: constant, linear, step, cosine, onecycle, or package.module:callable",
    )
    warmup: DurationOrZero = Field(default="0step", description="linear rise from zero before it; not for onecycle")
    args: dict[str, Any] = Field(
        default_factory=dict, description="the schedule's own arguments, such as final of cosine"
    )


@dataclass(frozen=True, config=_SETTINGS)
class TrainConfig:
    """Length, batch, precision and device of the training."""

    duration: Duration = Field(default="10ep", description="10ep, 500step or 200000img")
    batch_size: Int = Field(default=128, ge=1, description="global batch: images per optimizer step, over all ranks")
    micro_batch: Int | None = Field(
        default=None,
        ge=1,
        description="images per forward and backward; default: global batch / ranks. With a fixed value, the loss "
        "curve does not depend on the number of ranks",
    )
    drop_last: bool = Field(default=False, description="leave out each epoch's last, smaller batch")
    precision: Literal["fp32", "bf16", "bf16-master", "fp16"] = Field(
        default="fp32", description="autocast type; bf16-master: weights in bf16 with fp32 masters; fp16 needs CUDA"
    )
    gradient_sum: Literal["fp64", "fp32"] = Field(
        default="fp64", description="over micro-batches and ranks; fp64 gives the same bits at every world size"
    )
    ema: Float | None = Field(default=None, gt=0, lt=1, description="decay of a moving average of the weights")
    lookahead: Int | None = Field(
        default=None, ge=2, description="Lookahead: steps between updates of the slow weights"
    )
    lookahead_rate: Float = Field(default=0.5, gt=0, le=1, description="Lookahead: the slow weights' rate")
    clip_norm: Float | None = Field(default=None, gt=0, description="maximum norm of the gradient of all parameters")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: cuda if available")
    backend: Literal["auto", "nccl", "gloo"] = Field(
        default="auto",
        description="of collectives; auto: nccl between GPUs, else gloo; with gloo several ranks can share a GPU",
    )
    tf32: bool = Field(
        default=False, description="CUDA: fp32 matrix products with 10-bit mantissas, several times as fast"
    )
    deterministic: bool | Literal["strict"] = Field(
        default=True,
        description="true: cuDNN's and the compiler's deterministic algorithms; strict: those of all of PyTorch, which "
        "refuses operations that have none; false: the fastest, found by trying",
    )
    threads: Int | None = Field(
        default=None, ge=1, description="CPU threads per rank; default: cores / ranks on this node"
    )
    timeout: Float = Field(
        default=600, gt=0, description="seconds that a rank waits for other ranks before it exits with an error"
    )


@dataclass(frozen=True, config=_SETTINGS)
class EvalConfig:
    """When and how the test images, or the held-out images, are evaluated."""

    every: Duration = Field(default="1ep", description="and always at the end")
    batch_size: Int = Field(
        default=500, ge=1, description="images per forward on each rank; results do not depend on the number of ranks"
    )
    metrics: PartList = Field(
        default=(),
        description="further metrics, such as [f1, {top_k: {k: 3}}]: top_k, precision, recall, f1, calibration_error, "
        "auroc, or package.module:callable",
    )
    views: Literal["one", "mirror", "crops"] = Field(
        default="one", description="test-time augmentation: logits averaged over 1, 2 or 6 views"
    )


@dataclass(frozen=True, config=_SETTINGS)
class CheckpointConfig:
    """Saving and resuming."""

    every: Duration = Field(default="1ep", description="and always at the end")
    minutes: Float | None = Field(
        default=None, gt=0, description="also save when this many minutes have passed since the last save"
    )
    keep: Int = Field(default=2, ge=1, description="number of recent checkpoints to keep, besides the best")
    resume: str = Field(
        default="never", description="never; auto: from the run folder's newest valid checkpoint, if any; or a file"
    )
    allow_changes: tuple[str, ...] = Field(
        default=(), description="keys that may differ from the checkpoint's, such as [optim.weight_decay]"
    )


@dataclass(frozen=True, config=_SETTINGS)
class TrackingConfig:
    """Where metrics go besides metrics.jsonl."""

    log_every: Int = Field(
        default=10, ge=1, description="steps between log points, at which losses are read from the device and written"
    )
    console: bool = Field(default=True, description="live display on a terminal, one line per epoch elsewhere")
    report: bool = Field(default=True, description="write report.html at the end, if distcnn[report] is installed")
    backends: PartList = Field(
        default=("wandb",),
        description="tracking libraries: wandb, tensorboard (the run's tensorboard/ folder), trackio "
        "(a local database; `trackio show`), or your own package.module:class",
    )
    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto", description="auto: online with an API key, else offline; disabled if wandb is not installed"
    )
    project: str = Field(default="distcnn", description="wandb, trackio: the project")
    group: str | None = Field(default=None, description="wandb, trackio: a group of runs")
    timeout: Float = Field(default=30, gt=0, description="seconds that a hanging backend may delay the end of a run")


@dataclass(frozen=True, config=_SETTINGS)
class Config:
    """All settings of a run."""

    name: str | None = Field(
        default=None, description="the run's folder under output_dir; default: the config file's name"
    )
    seed: Int = Field(default=0, ge=0, lt=2**32, description="of weights, order, augmentation and dropout")
    output_dir: str = Field(default="runs", description="folder in which run folders are created")
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
