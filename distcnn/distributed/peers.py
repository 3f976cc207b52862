"""Detects within seconds that another rank's process has gone, wherever this one stands, and tells all ranks."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

from distcnn.distributed.lifeline import Lifeline
from distcnn.distributed.process import RankProcess, has_ended
from distcnn.distributed.world import World
from distcnn.errors import LostRankError, first_line

_PAUSE_S = 1.0
STILL_S = 2.0  # until then gloo's own message, from a collective of the main thread, comes first
_KEY = "lost"  # in the store: who has found it, and what to say


class Peers:
    """Watches the processes of the other ranks; `lost` is what to raise, on every rank, once one of them has gone.

    Those of this host are looked at while this rank stands still; a container may hide them, and then they are not. On
    GPUs each rank has a Lifeline to the next one too. The rank that finds that one has gone writes it into the store,
    for those on other hosts.
    """

    def __init__(self, world: World, store: Any, stood_s: Callable[[], float], *, lifeline: bool):
        """`stood_s` returns the seconds that this rank has stood still; with `lifeline` there is one."""
        self.world, self.store, self.stood_s, self.with_lifeline = world, store, stood_s, lifeline
        self.processes: Sequence[RankProcess] = ()
        self.visible: dict[int, psutil.Process] = {}
        self.lifeline: Lifeline | None = None
        self.lost: LostRankError | None = None
        self.telling: Any = None  # a connection to the store, for the thread that has set `lost`
        self.lock = threading.Lock()
        self.done = threading.Event()

    def begin(self, processes: Sequence[RankProcess]) -> None:
        """Begin to watch the `processes` of all ranks, given by rank. A collective."""
        self.processes = processes
        for rank, one in enumerate(processes):
            if rank != self.world.rank and (process := one.found()):
                self.visible[rank] = process
        # Made now: where the store has gone, to connect to it would take long. It is let go: see Heartbeats.begin.
        self.telling, self.store = self.store.clone(), self.store.clone()
        if self.with_lifeline:
            self.lifeline = Lifeline(self.world.rank, self.world.size, self._lose)
        threading.Thread(target=self._look, name="distcnn-peers", daemon=True).start()

    def leave(self) -> None:
        """Let ranks end from now on: none counts as lost any more."""
        self.done.set()

    def close(self) -> None:
        """Close the lifeline, once all ranks have left."""
        if self.lifeline is not None:
            self.lifeline.close()

    def _look(self) -> None:
        try:
            store = self.store
            while not self.done.wait(_PAUSE_S) and self.lost is None:
                if self.stood_s() > STILL_S:
                    for rank, process in self.visible.items():
                        if has_ended(process):
                            self._lose(rank, "its process has ended")
                if self.lost is None and store.check([_KEY]):
                    self._set(_said(store.get(_KEY)), own=False)
        except RuntimeError as error:  # the store is gone, and with it rank 0, or the training has ended
            time.sleep(_PAUSE_S)  # a rank that listens to rank 0 says that better
            if self.with_lifeline:
                what = f"rank 0, or torchrun's agent, which served the ranks' store, has gone ({first_line(error)})"
                self._set(what, own=True)

    def _lose(self, rank: int, why: str) -> None:
        """Tell the main thread at once, and then the store, which may be silent for long, and knows who was first."""
        one, finder = self.processes[rank], str(self.world.rank)
        text = f"rank {rank} of {self.world.size} on {one.host}, process {one.pid}, has gone: {why}"
        found = self._set(text, own=True)
        if found is None:
            return
        try:
            value = self.telling.compare_set(_KEY, "", f"{finder}\n{text}")
        except RuntimeError:  # the store went with it
            return
        if value.decode().partition("\n")[0] != finder:
            found.own = False  # it may have been raised already
            self.lost = LostRankError(_said(value), own=False)

    def _set(self, text: str, *, own: bool) -> LostRankError | None:
        """Set `lost` and return it; None where ranks may end already, or one was lost before."""
        with self.lock:
            if self.done.is_set() or self.lost is not None:
                return None
            self.lost = LostRankError(text, own=own)
            return self.lost


def _said(value: bytes) -> str:
    return value.decode().partition("\n")[2]
