"""The arithmetic of a run, computed once at its start: batches and steps."""

import math
from dataclasses import dataclass

from distcnn.config.schema import Config
from distcnn.config.types import parse_duration
from distcnn.errors import InputError


@dataclass(frozen=True)
class Plan:
    """Batches and steps of a run: micro-batch × ranks × accumulation = global batch."""

    train_images: int
    test_images: int
    world_size: int
    batch_size: int  # global: images per optimizer step
    micro_batch: int  # images per forward and backward
    accumulation: int  # micro-batches per step and rank
    steps_per_epoch: int
    steps: int  # in total
    eval_every: int  # steps
    checkpoint_every: int  # steps
    lr: float  # peak, after scaling

    @property
    def epochs(self) -> float:
        """Length in epochs."""
        return self.steps / self.steps_per_epoch

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of a full global batch, over all ranks."""
        return self.accumulation * self.world_size

    def epoch_of(self, step: int) -> int:
        """The epoch of optimizer step number `step`; both count from 1."""
        return -(-step // self.steps_per_epoch)

    def images_of(self, step: int) -> int:
        """The images of optimizer step number `step`, from 1 on: fewer than a batch in the last step of an epoch."""
        done = (step - 1) % self.steps_per_epoch * self.batch_size
        return min(self.batch_size, self.train_images - done)


@dataclass(frozen=True)
class Workload:
    """The network and the device of one rank: displayed, logged, and compared between the ranks."""

    parameters: int
    forward_flops: int  # per image of full size; a training step costs about three times that
    device: str
    precision: str
    threads: int


def make_plan(config: Config, *, train_images: int, test_images: int, world_size: int) -> Plan:
    """Convert durations to steps, and divide the global batch over the ranks.

    Raises InputError for an empty epoch, or if SyncBatchNorm would make ranks wait for each other forever.
    """
    batch = config.train.batch_size
    micro = config.train.micro_batch or batch // world_size
    steps_per_epoch = train_images // batch if config.train.drop_last else -(-train_images // batch)
    if steps_per_epoch == 0:
        raise InputError(
            f"train.drop_last = true, train.batch_size = {batch}: {train_images} training images do not fill one "
            "batch; use a smaller batch or drop_last: false"
        )
    short = train_images % batch
    even = not config.model.sync_batchnorm or config.train.drop_last
    if not even and (problem := _uneven_forwards(short, batch // world_size, micro, world_size)):
        raise InputError(problem)
    return Plan(
        train_images=train_images,
        test_images=test_images,
        world_size=world_size,
        batch_size=batch,
        micro_batch=micro,
        accumulation=batch // (micro * world_size),
        steps_per_epoch=steps_per_epoch,
        steps=to_steps(config.train.duration, batch, steps_per_epoch),
        eval_every=to_steps(config.eval.every, batch, steps_per_epoch),
        checkpoint_every=to_steps(config.checkpoint.every, batch, steps_per_epoch),
        lr=scaled_lr(config),
    )


def _uneven_forwards(short: int, share: int, micro: int, world_size: int) -> str:
    """Return why an epoch's last batch of `short` images does not work with SyncBatchNorm; "" if it does.

    SyncBatchNorm all-reduces statistics in every forward and backward: a rank with fewer forwards would leave the
    others waiting, and a dummy micro-batch, which has no weight elsewhere, would enter the statistics.
    """

    def even(size: int) -> bool:
        return -(-short // size) % world_size == 0

    if even(micro):
        return ""
    fits = [size for size in range(1, share + 1) if share % size == 0 and even(size)]
    return (
        f"model.sync_batchnorm, train.micro_batch = {micro}: an epoch's last batch, of {short} images, makes "
        f"{-(-short // micro)} micro-batches, which {world_size} ranks cannot share evenly, and SyncBatchNorm waits "
        "for all ranks in every forward: set train.drop_last true"
        + (f", or train.micro_batch to {', '.join(map(str, fits[-4:]))}" if fits else "")
    )


def to_steps(duration: str, batch_size: int, steps_per_epoch: int) -> int:
    """Convert `10ep`, `500step` or `200000img` to steps: epochs rounded to nearest, images rounded up; at least 1.

    Images count full batches: an epoch whose last batch is short holds fewer images than steps × batch size.
    """
    amount, unit = parse_duration(duration)
    if amount == 0:
        return 0
    steps = {
        "ep": round(amount * steps_per_epoch),
        "step": int(amount),
        "img": math.ceil(amount / batch_size),
    }[unit]
    return max(1, steps)


def scaled_lr(config: Config) -> float:
    """The peak learning rate for this global batch.

    `linear` is the rule of Goyal et al. 2017 (arXiv:1706.02677), `sqrt` that of Krizhevsky 2014 (arXiv:1404.5997).
    """
    exponent = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}[config.optim.lr_scaling]
    return float(config.optim.lr * (config.train.batch_size / config.optim.base_batch) ** exponent)
