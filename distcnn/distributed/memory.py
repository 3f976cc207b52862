"""Memory: how much of a device is free, and what to change where it was not enough."""

import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
import torch.distributed as dist

from distcnn.distributed.patience import patiently
from distcnn.errors import OutOfMemoryError, means_out_of_memory
from distcnn.rank import rank_from_env

RESERVE = 0.25  # of what is free: data leave it to the network, its gradients, activations and optimizer
_ASKED = re.compile(r"(?:ried|nable) to allocate ([\d.]+) ?(\w+)")
_ON_HOST = re.compile(r"DefaultCPUAllocator|Caught (?:MemoryError|_ArrayMemoryError) in")
_PATIENCE_S = 5  # with the store
_KEY = "out_of_memory"  # in the store: the message of the first rank that had too little


def free_bytes(device: torch.device) -> int:
    """Bytes of a CUDA device that tensors of this process could take now, what PyTorch holds for them included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def spare_bytes(device: torch.device) -> int:
    """Of `free_bytes`, those that are left when this process's tensors take again what they have taken at most."""
    again = torch.cuda.max_memory_allocated(device) - torch.cuda.memory_allocated(device)
    return free_bytes(device) - again


def fits(needed: int, free: int) -> bool:
    """Whether so many bytes of data may lie on a device with so many free ones, `RESERVE` of which is not theirs."""
    return needed <= (1 - RESERVE) * free


def resident_problem(needed: int, free: int) -> str:
    """What is wrong with `needed` bytes of training images on a GPU that has `free` ones; empty if they fit."""
    if fits(needed, free):
        return ""
    return (
        f"data.loader = resident: the training images need {in_words(needed)} on each rank's GPU; {in_words(free)} are "
        f"free there, of which {RESERVE:.0%} stays with the network: set data.loader streaming"
    )


def training_cures(micro_batch: int, share: int, resident: int = 0) -> list[str]:
    """What makes a training step smaller: a rank's `share` of the global batch is in micro-batches of so many images,
    and its resident training images take so many bytes of the device.
    """
    smaller = [str(size) for size in range(micro_batch - 1, 0, -1) if share % size == 0][:3]
    if smaller:
        cures = [f"train.micro_batch is {micro_batch}: sizes that take less and divide are {', '.join(smaller)}"]
    else:
        cures = ["train.micro_batch is 1 already: a smaller model or smaller images are what is left"]
    if resident:
        cures.append(f"data.loader is resident: streaming leaves {in_words(resident)} of training images on the host")
    return cures


def evaluation_cures(batch_size: int) -> list[str]:
    """What makes an evaluation in batches of so many images smaller; its numbers stay the same."""
    if batch_size == 1:
        return ["eval.batch_size is 1 already: a smaller model or smaller images are what is left"]
    return [f"it was evaluating, eval.batch_size is {batch_size}: {max(1, batch_size // 4)} gives the same numbers"]


def prediction_cures(images: int) -> list[str]:
    """What makes a prediction of so many images at once smaller."""
    if images == 1:
        return ["it was predicting one image: a smaller model or smaller images are what is left"]
    return [f"it was predicting {images} images at once: --batch-size {images // 2}, or so many in a call, needs less"]


@contextmanager
def explain_out_of_memory(device: torch.device, cures: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Where memory is not enough for what is done inside, raises an OutOfMemoryError that says what to change.

    `cures` gives the lines that say it; it is asked only then.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not means_out_of_memory(error):
            raise
        raise OutOfMemoryError(_message(error, device, cures())) from error


@contextmanager
def first_out_of_memory_of_all_ranks(store: Any) -> Iterator[None]:
    """All ranks of a process group raise the OutOfMemoryError of the first one that does. No collective.

    That one leaves its message in the group's `store`, None for a single rank. The others fail after it, by too little
    memory of their own or because they have lost it: rank 0, which writes metrics.jsonl, need not be the first.
    """
    try:
        yield
    except (OutOfMemoryError, RuntimeError) as error:
        own = str(error) if isinstance(error, OutOfMemoryError) else ""
        said = own if store is None else _first_said(store, own)
        if said == own:
            raise
        raise OutOfMemoryError(said, own=False) from error


def _first_said(store: Any, own: str) -> str:
    """The message of the first rank with too little memory, this one if nobody was before it; empty for none."""

    def ask() -> bytes:
        if own:
            return bytes(store.compare_set(_KEY, "", own))
        return bytes(store.get(_KEY)) if store.check([_KEY]) else b""

    try:
        said: bytes = patiently(lambda _: ask(), _PATIENCE_S)
    except (RuntimeError, TimeoutError):  # the rank that serves the store has gone, or stands still
        return own
    return said.decode()


def _message(error: Exception, device: torch.device, cures: Sequence[str]) -> str:
    if isinstance(error, MemoryError) or _ON_HOST.search(str(error)):
        device = torch.device("cpu")
    rank = dist.get_rank() if dist.is_initialized() else rank_from_env(os.environ)[0]
    asked = _ASKED.search(str(error))
    amount = "some"
    if asked:
        amount = in_words(int(asked[1])) if asked[2] == "bytes" else f"{asked[1]} {asked[2]}"
    first = (
        f"rank {rank} on {socket.gethostname()} ran out of memory on {device}: it asked for {amount}{_figures(device)}"
    )
    return "\n".join([first, *cures])


def _figures(device: torch.device) -> str:
    if device.type == "cpu":
        memory = psutil.virtual_memory()
        return f", {in_words(memory.available)} of {in_words(memory.total)} were available"
    try:
        (free, total), own = torch.cuda.mem_get_info(device), torch.cuda.memory_allocated(device)
    except RuntimeError:  # there is not even room to ask
        return ""
    return f", {in_words(free)} of {in_words(total)} were free, its own tensors held {in_words(own)}"


def in_words(size: int) -> str:
    """Bytes as a person reads them, such as 1.5 GiB."""
    amount, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 100 else f"{amount:.1f} {unit}"
