"""Heartbeats: each rank posts its step and phase to the store, for the others to read."""

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

_READ_ALL = 4  # ranks that read all heartbeats; the others read only theirs, to bound the load on the store


@dataclass(frozen=True)
class Heartbeat:
    """A rank's step, phase and stack at one moment."""

    count: int  # distinguishes new heartbeats from old ones
    process: RankProcess
    step: int  # steps done
    phase_count: int  # phases entered since the last step
    phase: str
    stack: str  # of the main thread
    device: DevicePlace | None = None  # None on a CPU, or if unknown

    @classmethod
    def read(cls, text: str | bytes) -> "Heartbeat":
        """Parse the JSON of `write`."""
        fields = json.loads(text)
        process, device = RankProcess(**fields.pop("process")), fields.pop("device")
        return cls(**fields, process=process, device=DevicePlace(*device) if device else None)

    def write(self) -> str:
        """Format as JSON."""
        return json.dumps(asdict(self))

    @property
    def progress(self) -> str:
        """The device's place, for a message; empty if unknown."""
        return f" (the host has issued step {self.step}, the device {self.device})" if self.device else ""

    @property
    def place(self) -> tuple[int, int]:
        """(step, phases since): comparable between ranks, as all go through the same phases."""
        return self.step, self.phase_count


class Heartbeats:
    """Posts this rank's heartbeats and keeps the newest one of each rank in `ranks`, including this one."""

    def __init__(self, world: World, store: Any, own: Callable[[int], Heartbeat], pause_s: float):
        """`own(count)` makes this rank's heartbeat; one is posted every `pause_s` seconds."""
        self.me, self.store, self.own, self.pause_s = world.rank, store, own, pause_s
        self.ranks = {*range(world.size if world.rank < _READ_ALL else _READ_ALL), world.rank}
        self.newest: dict[int, Heartbeat] = {}
        self._received_at: dict[int, float] = {}  # by this rank's monotonic clock

    def begin(self) -> list[RankProcess]:
        """Exchange the first heartbeats and return the processes of all ranks, by rank. A collective.

        So a rank that stops before it has posted one can still be named. Afterwards only a clone of the store is held:
        rank 0's own listens at its port for as long as anything refers to it, and this object outlives the group.
        """
        if self.store is not None:
            self.store = self.store.clone()  # its own connection, as calls may block
        first = gather_objects(self.own(0))
        for rank in self.ranks:
            self._store(rank, first[rank])
        return [heartbeat.process for heartbeat in first]

    def exchange(self, done: threading.Event, stuck: Callable[[], bool]) -> None:
        """Post and read heartbeats until `done`; read those of all `ranks` only while this one is `stuck`.

        Runs in its own thread, as it may block: the store is served by a rank, or by torchrun's agent.
        """
        try:
            store, count = self.store, 0
            while not done.wait(self.pause_s if count else 0):
                count += 1
                own = self.own(count)
                store.set(_key(self.me), own.write())
                self._store(self.me, own)
                # Rank 0's always: if it serves the store and hangs, nothing can be read any more.
                for rank in (self.ranks if stuck() else {0}) - {self.me}:
                    if store.check([_key(rank)]):
                        self._store(rank, Heartbeat.read(store.get(_key(rank))))
        except (RuntimeError, KeyError):  # the store or the main thread has ended
            return

    def silent_s(self, rank: int) -> float:
        """Return the seconds since a rank's newest heartbeat was received; infinite if none was."""
        return time.monotonic() - self._received_at.get(rank, float("-inf"))

    def missing(self, limit_s: float) -> set[int]:
        """Return the other ranks that have been silent for more than `limit_s` seconds."""
        return {rank for rank in self.ranks - {self.me} if self.silent_s(rank) > limit_s}

    def _store(self, rank: int, heartbeat: Heartbeat) -> None:
        if rank not in self.newest or self.newest[rank].count != heartbeat.count:
            self.newest[rank], self._received_at[rank] = heartbeat, time.monotonic()


def _key(rank: int) -> str:
    return f"heartbeat/{rank}"
