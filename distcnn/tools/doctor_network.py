"""What the doctor measures between ranks: clocks, all-reduces by size, and each link by itself, in each direction."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as dist

from distcnn.parallel.collectives import gather_objects
from distcnn.parallel.world import World
from distcnn.tools.doctor_local import Finding

SIZES = (1 << 10, 1 << 15, 1 << 20, 1 << 24)  # bytes of an all-reduce
_MESSAGE = 1 << 22  # bytes over one link
_RANKS = 16  # of more, each is tried with its neighbour and with the one half way round only
_SLOW = 0.6  # of what links of its kind reach: half the bandwidth is named, noise is not
_ROUNDS = 3
Links = Mapping[tuple[int, int], float]  # (from, to) → bytes a second


@dataclass(frozen=True)
class AllReduce:
    """Of one message size."""

    size: int  # bytes
    seconds: float  # median
    bandwidth: float  # bytes a second on the bus: size · 2 (world - 1) / world / seconds, as nccl-tests counts it


def clock_skew() -> list[float]:
    """Seconds that each rank's clock is ahead of rank 0's; some of it is the time that a meeting takes."""
    best = [float("inf")]
    for _ in range(5):
        dist.barrier()
        clocks = gather_objects(time.time())
        skews = [clock - clocks[0] for clock in clocks]
        best = min(best, skews, key=lambda skews: max(map(abs, skews)))
    return best


def all_reduces(device: torch.device, world: World) -> list[AllReduce]:
    """By message size; all ranks have rank 0's figures."""
    found = []
    for size in SIZES:
        data = torch.zeros(size // 4, device=device)
        times = []
        begun = time.perf_counter()
        for i in range(20):
            _wait(device)
            started = time.perf_counter()
            dist.all_reduce(data)
            _wait(device)
            times.append(time.perf_counter() - started)
            # Rank 0's clock decides for all.
            done = torch.tensor([float(i >= 4 and time.perf_counter() - begun > 1)], device=device)
            dist.broadcast(done, 0)
            if done.item():
                break
        seconds = median(times[1:])
        found.append(AllReduce(size, seconds, size * 2 * (world.size - 1) / world.size / seconds))
    shared: list[AllReduce] = gather_objects(found)[0]
    return shared


def links(device: torch.device, world: World, pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], float]:
    """The best of some tries over each (from, to), one at a time, while the others wait; equal on all ranks."""
    data = torch.zeros(_MESSAGE // 4, device=device)
    word = torch.zeros(1, device=device)
    own: dict[tuple[int, int], float] = {}
    for sender, receiver in pairs:
        dist.barrier()
        for _ in range(_ROUNDS + 1):
            started = time.perf_counter()
            if world.rank == sender:
                dist.send(data, receiver)
                dist.recv(word, receiver)  # it has arrived
                _wait(device)
                speed = _MESSAGE / (time.perf_counter() - started)
                own[sender, receiver] = max(speed, own.get((sender, receiver), 0.0))
            elif world.rank == receiver:
                dist.recv(data, sender)
                _wait(device)
                dist.send(word, sender)
    return {pair: speed for part in gather_objects(own) for pair, speed in part.items()}


def chosen_pairs(size: int) -> list[tuple[int, int]]:
    """Every two ranks in both directions, or a part of them where there are many."""
    if size <= _RANKS:
        return [(i, j) for i in range(size) for j in range(size) if i != j]
    steps = sorted({1, size // 2})
    near = [(i, (i + step) % size) for i in range(size) for step in steps]
    return [*near, *((j, i) for i, j in near)]


def slow_links(found: Links, hosts: Sequence[str]) -> list[tuple[int, int]]:
    """Those well below what links of their kind reach: between hosts, or within one."""
    slow = []
    for within in (True, False):
        kind = {pair: speed for pair, speed in found.items() if (hosts[pair[0]] == hosts[pair[1]]) is within}
        if len(kind) > 1:
            usual = sorted(kind.values())[-max(1, len(kind) // 4)]  # the upper quartile: most may be slow
            slow += [pair for pair, speed in kind.items() if speed < _SLOW * usual]
    return slow


def link_findings(found: Links, slow: Sequence[tuple[int, int]], hosts: Sequence[str]) -> list[Finding]:
    """The links, or what is behind the slow ones: a rank that sends or receives slowly everywhere is named itself."""
    speeds = [speed / 1e6 for speed in found.values()]
    if not slow:
        text = f"{len(found)} links, {min(speeds):,.0f} to {max(speeds):,.0f} MB/s"
        return [Finding("links", "ok", text)]
    findings, explained = [], set[tuple[int, int]]()
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


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
