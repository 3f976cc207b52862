"""Device memory: how much is free, and out-of-memory errors that say which settings need less."""

import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
import torch.distributed as dist

from distcnn.distributed.timeout import call_with_timeout
from distcnn.errors import OutOfMemoryError, means_out_of_memory
from distcnn.rank import rank_from_env

RESERVE = 0.25  # of the free memory, kept for the model, its gradients, activations and optimizer
_ASKED = re.compile(r"(?:ried|nable) to allocate ([\d.]+) ?(\w+)")
_ON_HOST = re.compile(r"DefaultCPUAllocator|Caught (?:MemoryError|_ArrayMemoryError) in")
_STORE_TIMEOUT_S = 5
_KEY = "out_of_memory"  # in the store: the message of the first rank that ran out of memory


def free_bytes(device: torch.device) -> int:
    """Return the bytes of a CUDA device available to this process, PyTorch's cache included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def spare_bytes(device: torch.device) -> int:
    """Return `free_bytes` less what this process would need to reach its peak allocation again."""
    to_peak = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    return free_bytes(device) - to_peak


def fits(needed: int, free: int) -> bool:
    """Whether `needed` bytes of data fit into `free` bytes of a device and leave `RESERVE` of them."""
    return needed <= (1 - RESERVE) * free


def resident_problem(needed: int, free: int) -> str:
    """Say that `needed` bytes of training images exceed a GPU's `free` bytes; empty if they fit."""
    if fits(needed, free):
        return ""
    return (
        f"data.loader = resident: the training images need {format_bytes(needed)} on each rank's GPU; "
        f"{format_bytes(free)} are free there, of which {RESERVE:.0%} is reserved for the model: set "
        "data.loader streaming"
    )


def training_fixes(micro_batch: int, rank_batch: int, resident: int = 0) -> list[str]:
    """Return what reduces the memory of a training step.

    `rank_batch` is a rank's part of the global batch, in images; `resident` the bytes of its resident training images.
    """
    smaller = [str(size) for size in range(micro_batch - 1, 0, -1) if rank_batch % size == 0][:3]
    if smaller:
        fixes = [f"train.micro_batch is {micro_batch}: smaller divisors of each rank's batch are {', '.join(smaller)}"]
    else:
        fixes = ["train.micro_batch is 1 already: use a smaller model or smaller images"]
    if resident:
        fixes.append(f"data.loader is resident: streaming keeps the {format_bytes(resident)} of images on the host")
    return fixes


def evaluation_fixes(batch_size: int) -> list[str]:
    """Return what reduces the memory of an evaluation, without changing its result."""
    if batch_size == 1:
        return ["eval.batch_size is 1 already: use a smaller model or smaller images"]
    return [f"it was evaluating, eval.batch_size is {batch_size}: {max(1, batch_size // 4)} gives the same numbers"]


def prediction_fixes(images: int) -> list[str]:
    """Return what reduces the memory of a prediction of `images` images at once."""
    if images == 1:
        return ["it was predicting one image: use a smaller model or smaller images"]
    return [f"it was predicting {images} images at once: --batch-size {images // 2}, or that many per call, needs less"]


@contextmanager
def explain_out_of_memory(device: torch.device, fixes: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Turn an out-of-memory error of the block into an OutOfMemoryError that says what to change.

    `fixes` returns the lines that say it; it is called only then.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not means_out_of_memory(error):
            raise
        raise OutOfMemoryError(_message(error, device, fixes())) from error


@contextmanager
def first_out_of_memory_of_all_ranks(store: Any) -> Iterator[None]:
    """Raise the first rank's OutOfMemoryError on every rank of a process group that fails. Not a collective.

    The first rank posts its message to the group's `store`, None for a single rank. The others fail after it, out of
    memory themselves or because they have lost it, and so rank 0 can write the cause to metrics.jsonl.
    """
    try:
        yield
    except (OutOfMemoryError, RuntimeError) as error:
        own = str(error) if isinstance(error, OutOfMemoryError) else ""
        first = own if store is None else _first_message(store, own)
        if first == own:
            raise
        raise OutOfMemoryError(first, own=False) from error


def _first_message(store: Any, own: str) -> str:
    """Return the message of the first rank that ran out of memory, posting `own` if there is none; "" for none."""

    def first() -> bytes:
        if own:
            return bytes(store.compare_set(_KEY, "", own))
        return bytes(store.get(_KEY)) if store.check([_KEY]) else b""

    try:
        message: bytes = call_with_timeout(lambda _: first(), _STORE_TIMEOUT_S)
    except (RuntimeError, TimeoutError):  # the rank that serves the store is gone or stuck
        return own
    return message.decode()


def _message(error: Exception, device: torch.device, fixes: Sequence[str]) -> str:
    if isinstance(error, MemoryError) or _ON_HOST.search(str(error)):
        device = torch.device("cpu")
    rank = dist.get_rank() if dist.is_initialized() else rank_from_env(os.environ)[0]
    asked = _ASKED.search(str(error))
    amount = "some"
    if asked:
        amount = format_bytes(int(asked[1])) if asked[2] == "bytes" else f"{asked[1]} {asked[2]}"
    first = (
        f"rank {rank} on {socket.gethostname()} ran out of memory on {device}: it asked for {amount}{_figures(device)}"
    )
    return "\n".join([first, *fixes])


def _figures(device: torch.device) -> str:
    if device.type == "cpu":
        memory = psutil.virtual_memory()
        return f", {format_bytes(memory.available)} of {format_bytes(memory.total)} were available"
    try:
        (free, total), own = torch.cuda.mem_get_info(device), torch.cuda.memory_allocated(device)
    except RuntimeError:  # not even enough memory for the query
        return ""
    return f", {format_bytes(free)} of {format_bytes(total)} were free, its own tensors held {format_bytes(own)}"


def format_bytes(size: int) -> str:
    """Format a number of bytes, such as 1.5 GiB."""
    amount, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 100 else f"{amount:.1f} {unit}"
