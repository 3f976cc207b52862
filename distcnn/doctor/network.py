"""Measurements between ranks: clocks, all-reduces by size, and each link in each direction."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from distcnn.bench.timing import mark, seconds_between, wait
from distcnn.distributed.collectives import gather_objects
from distcnn.distributed.world import World
from distcnn.doctor.links import Pair, slow_links

SIZES = (1 << 10, 1 << 15, 1 << 20, 1 << 24)  # bytes of an all-reduce
CUDA_SIZES = (*SIZES, 1 << 28)  # 16 MiB are too few to reach NVLink's full rate
_REPEATS = {"cpu": 1, "cuda": 10}  # all-reduces issued together: on CUDA a single one is shorter than its launch
MESSAGE = 1 << 22  # bytes over one link
_CUDA_MESSAGE = 1 << 28  # at most, else the bytes that take _MESSAGE_S seconds
_MESSAGE_S = 0.02
_RANKS = 16  # with more, only neighbours and ranks half the ring apart are measured
_ROUNDS = 3


@dataclass(frozen=True)
class AllReduce:
    """All-reduces of one message size."""

    size: int  # bytes
    seconds: float  # median
    bandwidth: float  # bytes per second on the bus: size · 2 (world - 1) / world / seconds, as nccl-tests counts it


Measured = tuple[list[AllReduce], dict[Pair, float]]


@dataclass(frozen=True)
class Transport:
    """The device and process groups of a measurement.

    Measured tensors go over `data`, everything else over `host`, a gloo group; None is the default group. `alive` is
    called with the name of each part that begins, which restarts its timeout (see call_with_timeout).
    """

    world: World
    device: torch.device
    data: Any = None
    host: Any = None
    alive: Callable[[str], None] = lambda _: None


def measure(transport: Transport, hosts: Sequence[str]) -> Measured:
    """Measure all-reduces by size, and the links. A collective; equal on all ranks."""
    table = all_reduces(transport)
    sizes = dict.fromkeys(chosen_pairs(transport.world.size), MESSAGE)
    found = links(transport, sizes)
    if transport.device.type == "cuda":  # over a fast link, MESSAGE is mostly latency
        sizes = {pair: message_size(speed) for pair, speed in found.items()}
        found |= links(transport, {pair: size for pair, size in sizes.items() if size > MESSAGE})
    for _ in range(2):  # repeat to rule out noise
        if not (suspects := slow_links(found, hosts)):
            break
        again = links(transport, {pair: sizes[pair] for pair in suspects})
        found = {pair: max(speed, again.get(pair, 0.0)) for pair, speed in found.items()}
    return table, found


def clock_skew() -> list[float]:
    """Return the seconds by which each rank's clock is ahead of rank 0's, by rank. A collective.

    The error is up to the time of a gather.
    """
    best = [float("inf")]
    for _ in range(5):
        dist.barrier()
        clocks = gather_objects(time.time())
        skews = [clock - clocks[0] for clock in clocks]
        best = min(best, skews, key=lambda skews: max(map(abs, skews)))
    return best


def all_reduces(transport: Transport) -> list[AllReduce]:
    """Measure all-reduces by message size; return rank 0's figures on all ranks. A collective."""
    found, device, size = [], transport.device, transport.world.size
    repeats = _REPEATS[device.type]
    for count in CUDA_SIZES if device.type == "cuda" else SIZES:
        transport.alive(f"all-reduces of {count} bytes")
        data = torch.zeros(count // 4, device=device)
        times = []
        begun = time.perf_counter()
        for i in range(20):
            wait(device)
            begin = mark(device)
            for _ in range(repeats):
                dist.all_reduce(data, group=transport.data)
            end = mark(device)
            wait(device)
            times.append(seconds_between(begin, end) / repeats)
            # Rank 0's clock decides, so that all ranks stop together.
            done = torch.tensor([float(i >= 4 and time.perf_counter() - begun > 1)])
            dist.broadcast(done, 0, group=transport.host)
            if done.item():
                break
        seconds = median(times[1:])
        found.append(AllReduce(count, seconds, count * 2 * (size - 1) / size / seconds))
    shared: list[AllReduce] = _gather(transport, found)[0]
    return shared


def links(transport: Transport, sizes: Mapping[Pair, int]) -> dict[Pair, float]:
    """Measure links by messages of their size: (from, to) → bytes per second. A collective; equal on all ranks.

    One link at a time, while the other ranks wait; the best of several rounds. The sender times the message and the
    receiver's acknowledgement.
    """
    device, rank = transport.device, transport.world.rank
    buffer = torch.zeros(max(sizes.values(), default=0) // 4, device=device)
    reply = torch.zeros(1, device=device)
    own: dict[Pair, float] = {}
    for (sender, receiver), size in sizes.items():
        data = buffer[: size // 4]
        dist.barrier(group=transport.host)
        transport.alive(f"rank {sender} to rank {receiver}")
        for _ in range(_ROUNDS + 1):
            if rank == sender:
                begin = mark(device)
                _transfer(dist.isend, data, receiver, transport)
                _transfer(dist.irecv, reply, receiver, transport)
                end = mark(device)
                wait(device)
                speed = size / seconds_between(begin, end)
                own[sender, receiver] = max(speed, own.get((sender, receiver), 0.0))
            elif rank == receiver:
                _transfer(dist.irecv, data, sender, transport)
                _transfer(dist.isend, reply, sender, transport)
                wait(device)
    return {pair: speed for part in _gather(transport, own) for pair, speed in part.items()}


def _transfer(operation: Any, tensor: Tensor, peer: int, transport: Transport) -> None:
    """Send or receive as a batch of one: unbatched, PyTorch would warn that NCCL serializes it, as intended here."""
    for work in dist.batch_isend_irecv([dist.P2POp(operation, tensor, peer, transport.data)]):
        work.wait()


def _gather(transport: Transport, own: Any) -> list[Any]:
    box = [None] * transport.world.size
    dist.all_gather_object(box, own, group=transport.host)
    return box


def message_size(speed: float) -> int:
    """Return the message size for a link of `speed` bytes per second: a multiple of 1 MiB that hides latency."""
    return max(MESSAGE, min(_CUDA_MESSAGE, int(speed * _MESSAGE_S) >> 20 << 20))


def chosen_pairs(size: int) -> list[Pair]:
    """Return all pairs of `size` ranks, in both directions; a subset if there are many."""
    if size <= _RANKS:
        return [(i, j) for i in range(size) for j in range(size) if i != j]
    steps = sorted({1, size // 2})
    near = [(i, (i + step) % size) for i in range(size) for step in steps]
    return [*near, *((j, i) for i, j in near)]
