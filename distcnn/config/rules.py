"""Cross-field rules: combinations of settings, or of a setting and the number of ranks, that are refused. No torch."""

from collections.abc import Iterator

from distcnn.config.schema import Config
from distcnn.registry import Problem
from distcnn.text import plural


def conflicts(config: Config, world_size: int) -> Iterator[Problem]:
    """Check the combinations that no machine with this many ranks could run."""
    train, data = config.train, config.data
    if train.precision == "fp16" and train.device == "cpu":
        yield ("train.precision", "train.device"), "fp16 needs CUDA; on the CPU use bf16 or fp32"
    if config.model.sync_batchnorm and train.device == "cpu":
        yield (
            ("model.sync_batchnorm", "train.device"),
            "SyncBatchNorm needs CUDA; with train.micro_batch fixed, runs agree at every world size without it",
        )
    if problem := _batch_problem(train.batch_size, train.micro_batch, world_size):
        keys = ("train.batch_size", "train.micro_batch") if train.micro_batch else ("train.batch_size",)
        yield keys, problem
    if config.model.compile and train.precision == "bf16-master":
        yield ("model.compile", "train.precision"), "bf16-master computes with a copy that is not compiled; use bf16"
    if (data.mean is None) != (data.std is None):
        yield ("data.mean", "data.std"), "give both or neither"
    if data.std is not None and min(data.std) <= 0:
        yield ("data.std",), "must be above 0 in every channel"
    if train.backend == "nccl" and train.device == "cpu":
        yield ("train.backend", "train.device"), "NCCL needs CUDA; use auto or gloo"
    if train.tf32 and train.device == "cpu":
        yield ("train.tf32", "train.device"), "TF32 needs CUDA"
    if config.name is not None and (config.name in ("", ".", "..") or "/" in config.name or "\\" in config.name):
        yield ("name",), "should be the name of one folder inside output_dir, without slashes"


def _batch_problem(batch_size: int, micro_batch: int | None, world_size: int) -> str | None:
    unit = (micro_batch or 1) * world_size
    if batch_size % unit == 0:
        return None
    below = batch_size // unit * unit
    near = [str(size) for size in (below - unit, below, below + unit, below + 2 * unit) if size > 0]
    each = plural(world_size, "rank")
    if micro_batch is None:
        return f"the global batch {batch_size} does not divide over {each}; sizes that do: {', '.join(near)}"
    message = (
        f"the global batch {batch_size} does not divide into micro-batches of {micro_batch} on {each}; "
        f"global batches that do: {', '.join(near)}"
    )
    if batch_size % world_size == 0:
        share = batch_size // world_size
        fits = [size for size in range(1, share + 1) if share % size == 0]
        message += f"; or micro-batches of {', '.join(map(str, fits))}"
    return message
