"""Detects within seconds that another rank's process has died, whatever this one is doing, and tells all ranks."""

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
IDLE_S = 2.0  # of the main thread; before that, an error of its own collective takes precedence
_KEY = "lost"  # in the store: the rank that detected the loss, and its message


class Peers:
    """Watches the processes of the other ranks; once one is gone, `lost` is the exception to raise, on every rank.

    Processes of this host are polled while this rank is idle, unless a container hides them. On GPUs each rank also has
    a Lifeline to the next. The rank that detects a loss posts it to the store, for those on other hosts.
    """

    def __init__(self, world: World, store: Any, idle_s: Callable[[], float], *, lifeline: bool):
        """`idle_s` returns the seconds since the main thread last changed phase; `lifeline`: whether to open one."""
        self.world, self.store, self.idle_s, self.with_lifeline = world, store, idle_s, lifeline
        self.processes: Sequence[RankProcess] = ()
        self.visible: dict[int, psutil.Process] = {}
        self.lifeline: Lifeline | None = None
        self.lost: LostRankError | None = None
        self.report_store: Any = None  # its own connection, for the thread that sets `lost`
        self.lock = threading.Lock()
        self.done = threading.Event()

    def begin(self, processes: Sequence[RankProcess]) -> None:
        """Start watching the `processes` of all ranks, given by rank. A collective."""
        self.processes = processes
        for rank, one in enumerate(processes):
            if rank != self.world.rank and (process := one.found()):
                self.visible[rank] = process
        # Connect now: it would take long once the store is gone. Only clones are held: see Heartbeats.begin.
        self.report_store, self.store = self.store.clone(), self.store.clone()
        if self.with_lifeline:
            self.lifeline = Lifeline(self.world.rank, self.world.size, self._lose)
        threading.Thread(target=self._poll, name="distcnn-peers", daemon=True).start()

    def leave(self) -> None:
        """Count no rank as lost from now on: ranks may exit."""
        self.done.set()

    def close(self) -> None:
        """Close the lifeline, once all ranks have left."""
        if self.lifeline is not None:
            self.lifeline.close()

    def _poll(self) -> None:
        try:
            store = self.store
            while not self.done.wait(_PAUSE_S) and self.lost is None:
                if self.idle_s() > IDLE_S:
                    for rank, process in self.visible.items():
                        if has_ended(process):
                            self._lose(rank, "its process has ended")
                if self.lost is None and store.check([_KEY]):
                    self._set(_message(store.get(_KEY)), own=False)
        except RuntimeError as error:  # the store is gone, and rank 0 with it, or the training has ended
            time.sleep(_PAUSE_S)  # a rank with a Lifeline to rank 0 reports it better
            if self.with_lifeline:
                what = f"rank 0, or torchrun's agent, which served the ranks' store, is gone ({first_line(error)})"
                self._set(what, own=True)

    def _lose(self, rank: int, why: str) -> None:
        """Set `lost` at once, then post it to the store, which may take long and decides which rank was first."""
        one, finder = self.processes[rank], str(self.world.rank)
        text = f"rank {rank} of {self.world.size} on {one.host}, process {one.pid}, is gone: {why}"
        found = self._set(text, own=True)
        if found is None:
            return
        try:
            value = self.report_store.compare_set(_KEY, "", f"{finder}\n{text}")
        except RuntimeError:  # the store is gone, too
            return
        if value.decode().partition("\n")[0] != finder:
            found.own = False  # it may already be raised
            self.lost = LostRankError(_message(value), own=False)

    def _set(self, text: str, *, own: bool) -> LostRankError | None:
        """Set `lost` and return it; None if ranks may exit, or one was lost before."""
        with self.lock:
            if self.done.is_set() or self.lost is not None:
                return None
            self.lost = LostRankError(text, own=own)
            return self.lost


def _message(value: bytes) -> str:
    return value.decode().partition("\n")[2]
