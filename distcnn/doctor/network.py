"""Measurements between ranks: clocks, all-reduces by size, and each link by itself, in each direction."""

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
CUDA_SIZES = (*SIZES, 1 << 28)  # on NVLink 16 MiB are over before they have reached its full rate
_REPEATS = {"cpu": 1, "cuda": 10}  # all-reduces that are issued together: on CUDA one alone is shorter than its launch
MESSAGE = 1 << 22  # bytes over one link
_CUDA_MESSAGE = 1 << 28  # at most, and as many as go over it in this time:
_MESSAGE_S = 0.02
_RANKS = 16  # of more, each is measured with its neighbour and the rank half the ring away
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
    """What is measured: tensors on this rank's device, which go over the group `data`.

    What the ranks tell each other about it goes over `host`, a gloo group. Of both, None is the default group. `alive`
    is told what begins, so that a watching thread knows that the ranks do not hang, or where they do.
    """

    world: World
    device: torch.device
    data: Any = None
    host: Any = None
    alive: Callable[[str], None] = lambda _: None


def measure(transport: Transport, hosts: Sequence[str]) -> Measured:
    """Measure all-reduces by size, and all links. A collective; equal on all ranks."""
    table = all_reduces(transport)
    sizes = dict.fromkeys(chosen_pairs(transport.world.size), MESSAGE)
    found = links(transport, sizes)
    if transport.device.type == "cuda":  # over a fast link that was mostly latency
        sizes = {pair: message_size(speed) for pair, speed in found.items()}
        found |= links(transport, {pair: size for pair, size in sizes.items() if size > MESSAGE})
    for _ in range(2):  # noise passes, a slow link stays slow
        if not (suspects := slow_links(found, hosts)):
            break
        again = links(transport, {pair: sizes[pair] for pair in suspects})
        found = {pair: max(speed, again.get(pair, 0.0)) for pair, speed in found.items()}
    return table, found


def clock_skew() -> list[float]:
    """Return the seconds that each rank's clock is ahead of rank 0's, by rank; a part is the time of the exchange.

    A collective.
    """
    best = [float("inf")]
    for _ in range(5):
        dist.barrier()
        clocks = gather_objects(time.time())
        skews = [clock - clocks[0] for clock in clocks]
        best = min(best, skews, key=lambda skews: max(map(abs, skews)))
    return best


def all_reduces(transport: Transport) -> list[AllReduce]:
    """Measure all-reduces by message size; all ranks get rank 0's figures. A collective."""
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
            # Rank 0's clock decides for all.
            done = torch.tensor([float(i >= 4 and time.perf_counter() - begun > 1)])
            dist.broadcast(done, 0, group=transport.host)
            if done.item():
                break
        seconds = median(times[1:])
        found.append(AllReduce(count, seconds, count * 2 * (size - 1) / size / seconds))
    shared: list[AllReduce] = _gathered(transport, found)[0]
    return shared


def links(transport: Transport, sizes: Mapping[Pair, int]) -> dict[Pair, float]:
    """Measure each (from, to) by messages of its size in bytes → bytes per second. A collective; equal on all ranks.

    One link at a time, while the other ranks wait, and the best of some tries. Each is timed on the sender, until the
    receiver has said that all of it is there.
    """
    device, rank = transport.device, transport.world.rank
    buffer = torch.zeros(max(sizes.values(), default=0) // 4, device=device)
    word = torch.zeros(1, device=device)
    own: dict[Pair, float] = {}
    for (sender, receiver), size in sizes.items():
        data = buffer[: size // 4]
        dist.barrier(group=transport.host)
        transport.alive(f"rank {sender} to rank {receiver}")
        for _ in range(_ROUNDS + 1):
            if rank == sender:
                begin = mark(device)
                _pass(dist.isend, data, receiver, transport)
                _pass(dist.irecv, word, receiver, transport)
                end = mark(device)
                wait(device)
                speed = size / seconds_between(begin, end)
                own[sender, receiver] = max(speed, own.get((sender, receiver), 0.0))
            elif rank == receiver:
                _pass(dist.irecv, data, sender, transport)
                _pass(dist.isend, word, sender, transport)
                wait(device)
    return {pair: speed for part in _gathered(transport, own) for pair, speed in part.items()}


def _pass(operation: Any, tensor: Tensor, peer: int, transport: Transport) -> None:
    """As a batch of one: by itself it would make PyTorch warn that over NCCL it waits for its turn, which it is to."""
    for work in dist.batch_isend_irecv([dist.P2POp(operation, tensor, peer, transport.data)]):
        work.wait()


def _gathered(transport: Transport, own: Any) -> list[Any]:
    box = [None] * transport.world.size
    dist.all_gather_object(box, own, group=transport.host)
    return box


def message_size(speed: float) -> int:
    """Return the bytes of a message over a link of `speed` bytes per second: whole MiB, long enough to hide latency."""
    return max(MESSAGE, min(_CUDA_MESSAGE, int(speed * _MESSAGE_S) >> 20 << 20))


def chosen_pairs(size: int) -> list[Pair]:
    """Return every two of `size` ranks in both directions, or a part of them where there are many."""
    if size <= _RANKS:
        return [(i, j) for i in range(size) for j in range(size) if i != j]
    steps = sorted({1, size // 2})
    near = [(i, (i + step) % size) for i in range(size) for step in steps]
    return [*near, *((j, i) for i, j in near)]
