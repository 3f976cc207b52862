"""What the doctor measures between ranks: clocks, all-reduces by size, and each link by itself, in each direction."""

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
from distcnn.doctor.local import Finding

SIZES = (1 << 10, 1 << 15, 1 << 20, 1 << 24)  # bytes of an all-reduce
CUDA_SIZES = (*SIZES, 1 << 28)  # on NVLink 16 MiB are over before they have reached its full rate
_REPEATS = {"cpu": 1, "cuda": 10}  # all-reduces that are issued together: on CUDA one alone is shorter than its launch
MESSAGE = 1 << 22  # bytes over one link
_CUDA_MESSAGE = 1 << 28  # at most, and as many as go over it in this time:
_MESSAGE_S = 0.02
_RANKS = 16  # of more, each is tried with its neighbour and with the one half way round only
_SLOW = 0.6  # of what links of its kind reach: half the bandwidth is named, noise is not
_ROUNDS = 3
Pair = tuple[int, int]
Links = Mapping[Pair, float]  # (from, to) → bytes a second


@dataclass(frozen=True)
class AllReduce:
    """Of one message size."""

    size: int  # bytes
    seconds: float  # median
    bandwidth: float  # bytes a second on the bus: size · 2 (world - 1) / world / seconds, as nccl-tests counts it


@dataclass(frozen=True)
class Way:
    """What is measured: tensors on this rank's device, which go over `data`. What the ranks say to each other about
    it goes over `host`, a gloo group. Of both, None is the default group.

    `alive` is told what begins: whoever looks on knows by it that the ranks do not hang, or where they do.
    """

    world: World
    device: torch.device
    data: Any = None
    host: Any = None
    alive: Callable[[str], None] = lambda _: None


def measure(way: Way, hosts: Sequence[str]) -> tuple[list[AllReduce], dict[Pair, float]]:
    """All-reduces by size, and all links; equal on all ranks, which call it alike."""
    table = all_reduces(way)
    sizes = dict.fromkeys(chosen_pairs(way.world.size), MESSAGE)
    found = links(way, sizes)
    if way.device.type == "cuda":  # over a fast link that was mostly latency
        sizes = {pair: message_size(speed) for pair, speed in found.items()}
        found |= links(way, {pair: size for pair, size in sizes.items() if size > MESSAGE})
    for _ in range(2):  # noise passes, a slow link stays slow
        if not (suspects := slow_links(found, hosts)):
            break
        again = links(way, {pair: sizes[pair] for pair in suspects})
        found = {pair: max(speed, again.get(pair, 0.0)) for pair, speed in found.items()}
    return table, found


def clock_skew() -> list[float]:
    """Seconds that each rank's clock is ahead of rank 0's; some of it is the time that a meeting takes."""
    best = [float("inf")]
    for _ in range(5):
        dist.barrier()
        clocks = gather_objects(time.time())
        skews = [clock - clocks[0] for clock in clocks]
        best = min(best, skews, key=lambda skews: max(map(abs, skews)))
    return best


def all_reduces(way: Way) -> list[AllReduce]:
    """By message size; all ranks have rank 0's figures."""
    found, device, size = [], way.device, way.world.size
    repeats = _REPEATS[device.type]
    for count in CUDA_SIZES if device.type == "cuda" else SIZES:
        way.alive(f"all-reduces of {count} bytes")
        data = torch.zeros(count // 4, device=device)
        times = []
        begun = time.perf_counter()
        for i in range(20):
            wait(device)
            begin = mark(device)
            for _ in range(repeats):
                dist.all_reduce(data, group=way.data)
            end = mark(device)
            wait(device)
            times.append(seconds_between(begin, end) / repeats)
            # Rank 0's clock decides for all.
            done = torch.tensor([float(i >= 4 and time.perf_counter() - begun > 1)])
            dist.broadcast(done, 0, group=way.host)
            if done.item():
                break
        seconds = median(times[1:])
        found.append(AllReduce(count, seconds, count * 2 * (size - 1) / size / seconds))
    shared: list[AllReduce] = _gathered(way, found)[0]
    return shared


def links(way: Way, sizes: Mapping[Pair, int]) -> dict[Pair, float]:
    """The best of some tries over each (from, to), one at a time, while the others wait; equal on all ranks.

    Of so many bytes each. They are timed on the sender, until the receiver has said that all of it is there.
    """
    device, rank = way.device, way.world.rank
    buffer = torch.zeros(max(sizes.values(), default=0) // 4, device=device)
    word = torch.zeros(1, device=device)
    own: dict[Pair, float] = {}
    for (sender, receiver), size in sizes.items():
        data = buffer[: size // 4]
        dist.barrier(group=way.host)
        way.alive(f"rank {sender} to rank {receiver}")
        for _ in range(_ROUNDS + 1):
            if rank == sender:
                begin = mark(device)
                _pass(dist.isend, data, receiver, way)
                _pass(dist.irecv, word, receiver, way)
                end = mark(device)
                wait(device)
                speed = size / seconds_between(begin, end)
                own[sender, receiver] = max(speed, own.get((sender, receiver), 0.0))
            elif rank == receiver:
                _pass(dist.irecv, data, sender, way)
                _pass(dist.isend, word, sender, way)
                wait(device)
    return {pair: speed for part in _gathered(way, own) for pair, speed in part.items()}


def _pass(operation: Any, tensor: Tensor, peer: int, way: Way) -> None:
    """As a batch of one: by itself it would make PyTorch warn that over NCCL it waits for its turn, which it is to."""
    for work in dist.batch_isend_irecv([dist.P2POp(operation, tensor, peer, way.data)]):
        work.wait()


def _gathered(way: Way, own: Any) -> list[Any]:
    box = [None] * way.world.size
    dist.all_gather_object(box, own, group=way.host)
    return box


def message_size(speed: float) -> int:
    """Bytes for a message over a link of so many bytes a second: whole MiB, enough that latency does not count."""
    return max(MESSAGE, min(_CUDA_MESSAGE, int(speed * _MESSAGE_S) >> 20 << 20))


def chosen_pairs(size: int) -> list[Pair]:
    """Every two ranks in both directions, or a part of them where there are many."""
    if size <= _RANKS:
        return [(i, j) for i in range(size) for j in range(size) if i != j]
    steps = sorted({1, size // 2})
    near = [(i, (i + step) % size) for i in range(size) for step in steps]
    return [*near, *((j, i) for i, j in near)]


def slow_links(found: Links, hosts: Sequence[str]) -> list[Pair]:
    """Those well below what links of their kind reach: between hosts, or within one."""
    slow = []
    for within in (True, False):
        kind = {pair: speed for pair, speed in found.items() if (hosts[pair[0]] == hosts[pair[1]]) is within}
        if len(kind) > 1:
            usual = sorted(kind.values())[-max(1, len(kind) // 4)]  # the upper quartile: most may be slow
            slow += [pair for pair, speed in kind.items() if speed < _SLOW * usual]
    return slow


def link_findings(found: Links, slow: Sequence[Pair], hosts: Sequence[str]) -> list[Finding]:
    """The links, or what is behind the slow ones: a rank that sends or receives slowly everywhere is named itself."""
    speeds = [speed / 1e6 for speed in found.values()]
    if not slow:
        text = f"{len(found)} links, {min(speeds):,.0f} to {max(speeds):,.0f} MB/s"
        return [Finding("links", "ok", text)]
    findings, explained = [], set[Pair]()
    for verb, end in (("sends", 0), ("receives", 1)):
        for rank in range(len(hosts)):
            mine = [pair for pair in found if pair[end] == rank and hosts[pair[0]] != hosts[pair[1]]]
            mine = mine or [pair for pair in found if pair[end] == rank]
            if mine and all(pair in slow for pair in mine) and not explained.issuperset(mine):
                others = median(speed for pair, speed in found.items() if pair[end] != rank) / 1e6
                own = median(found[pair] for pair in mine) / 1e6
                text = f"rank {rank} on {hosts[rank]} {verb} {own:,.0f} MB/s, where the others reach {others:,.0f}"
                findings.append(Finding("links", "warn", text, _CURE.format(host=hosts[rank])))
                explained.update(mine)
    for sender, receiver in slow:
        if (sender, receiver) not in explained:
            text = f"rank {sender} on {hosts[sender]} to rank {receiver} on {hosts[receiver]}: "
            text += f"{found[sender, receiver] / 1e6:,.0f} MB/s, where the median is {median(speeds):,.0f}"
            findings.append(Finding("links", "warn", text, _CURE.format(host=f"{hosts[sender]} and {hosts[receiver]}")))
    return findings


_CURE = (
    "look at {host}: its cable and switch port (ethtool), other traffic, limits (tc qdisc), and whether "
    "GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME should name a faster interface; or leave it out"
)
