"""Heartbeats: each rank tells the others, through the store, where it is."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from distcnn.distributed.collectives import gather_objects
from distcnn.distributed.device_clock import DevicePlace
from distcnn.distributed.process import RankProcess
from distcnn.distributed.world import World

_KNOW_ALL = 4  # at most this many ranks read the heartbeats of all; the rest read theirs, to bound the store's load


@dataclass(frozen=True)
class Heartbeat:
    """Where a rank is."""

    count: int  # its number, by which a new one is told from an old one
    process: RankProcess
    step: int  # steps done
    phase_count: int  # phases entered since then
    phase: str
    stack: str  # of its main thread
    device: DevicePlace | None = None  # None on a CPU, which is never behind, and where it is not known

    @classmethod
    def read(cls, text: str | bytes) -> "Heartbeat":
        """Return what `write` has written."""
        fields = json.loads(text)
        process, device = RankProcess(**fields.pop("process")), fields.pop("device")
        return cls(**fields, process=process, device=DevicePlace(*device) if device else None)

    def write(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @property
    def progress(self) -> str:
        """Where the device is, for a message; empty where that is not known."""
        return f" (the host has issued step {self.step}, the device {self.device})" if self.device else ""

    @property
    def place(self) -> tuple[int, int]:
        """(step, phases since): comparable between ranks, which go through the same phases."""
        return self.step, self.phase_count


class Heartbeats:
    """Posts this rank's heartbeats and keeps the newest one of each rank in `ranks`, this one included."""

    def __init__(self, world: World, store: Any, own: Callable[[int], Heartbeat], pause_s: float):
        """`own` makes this rank's heartbeat of that number; one is posted every `pause_s` seconds."""
        self.me, self.store, self.own, self.pause_s = world.rank, store, own, pause_s
        self.ranks = {*range(world.size if world.rank < _KNOW_ALL else _KNOW_ALL), world.rank}
        self.newest: dict[int, Heartbeat] = {}
        self._came: dict[int, float] = {}  # when, by this rank's monotonic clock

    def begin(self) -> list[RankProcess]:
        """Exchange the first ones; returns the processes of all ranks. A collective.

        So a rank that stops before it has posted one can still be named. From here on the store itself is let go:
        rank 0's listens at its port for as long as anything refers to it, and what watches outlives the group.
        """
        if self.store is not None:
            self.store = self.store.clone()  # a connection of its own, which may block
        first = gather_objects(self.own(0))
        for rank in self.ranks:
            self._keep(rank, first[rank])
        return [heartbeat.process for heartbeat in first]

    def exchange(self, done: threading.Event, stuck: Callable[[], bool]) -> None:
        """Post and read heartbeats until `done`; those of all `ranks` are read only where this one is `stuck`.

        In a thread of its own, for it may block: the store is served by a rank, or by torchrun's agent.
        """
        try:
            store, count = self.store, 0
            while not done.wait(self.pause_s if count else 0):
                count += 1
                own = self.own(count)
                store.set(_key(self.me), own.write())
                self._keep(self.me, own)
                # Rank 0's always: it may serve the store, which is then as silent as itself.
                for rank in (self.ranks if stuck() else {0}) - {self.me}:
                    if store.check([_key(rank)]):
                        self._keep(rank, Heartbeat.read(store.get(_key(rank))))
        except (RuntimeError, KeyError):  # the store or the watched thread has ended: there is nothing left to tell
            return

    def silent_s(self, rank: int) -> float:
        """Return the seconds since a rank's newest heartbeat came; infinite if none has come."""
        return time.monotonic() - self._came.get(rank, float("-inf"))

    def missing(self, patience_s: float) -> set[int]:
        """Return the other ranks whose last heartbeat came longer ago than that."""
        return {rank for rank in self.ranks - {self.me} if self.silent_s(rank) > patience_s}

    def _keep(self, rank: int, heartbeat: Heartbeat) -> None:
        if rank not in self.newest or self.newest[rank].count != heartbeat.count:
            self.newest[rank], self._came[rank] = heartbeat, time.monotonic()


def _key(rank: int) -> str:
    return f"heartbeat/{rank}"
