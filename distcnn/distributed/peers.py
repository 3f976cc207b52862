"""Notices within seconds that another rank's process has gone, wherever this one stands, and tells all ranks."""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from distcnn.distributed.lifeline import Lifeline
from distcnn.distributed.world import World
from distcnn.errors import LostRankError, first_line

_PAUSE_S = 1.0
STILL_S = 2.0  # until then gloo's own words, from an exchange of the main thread, come first
_KEY = "lost"  # in the store: who has found it, and what to say


@dataclass(frozen=True)
class Identity:
    """Of a rank's process."""

    host: str
    pid: int
    born: float  # the process's creation time: another process may get its number


class Peers:
    """The processes of the other ranks.

    Those of this host are looked at while this rank stands still; a container may hide them, and then they are not. On
    GPUs each rank has a Lifeline to the next one too. Whoever finds that one has gone writes it into the store, for
    those on other hosts. `lost` is then what to raise, on every rank.
    """

    def __init__(self, world: World, store: Any, stood: Callable[[], float], *, lifeline: bool):
        self.world, self.store, self.stood, self.with_lifeline = world, store, stood, lifeline
        self.identities: Sequence[Identity] = ()
        self.visible: dict[int, psutil.Process] = {}
        self.lifeline: Lifeline | None = None
        self.lost: LostRankError | None = None
        self.telling: Any = None  # a connection to the store, for the thread that has set `lost`
        self.lock = threading.Lock()
        self.done = threading.Event()

    def begin(self, identities: Sequence[Identity]) -> None:
        """A collective; `identities` are those of all ranks."""
        self.identities = identities
        for rank, one in enumerate(identities):
            if rank != self.world.rank and (process := _seen(one)):
                self.visible[rank] = process
        self.telling = self.store.clone()  # made now: where the store has gone, to connect to it would take long
        if self.with_lifeline:
            self.lifeline = Lifeline(self.world.rank, self.world.size, self._lose)
        threading.Thread(target=self._look, name="distcnn-peers", daemon=True).start()

    def leave(self) -> None:
        """From now on ranks may end: nobody is lost any more."""
        self.done.set()

    def close(self) -> None:
        """All ranks have left: let go of the lifeline."""
        if self.lifeline is not None:
            self.lifeline.close()

    def _look(self) -> None:
        try:
            store = self.store.clone()
            while not self.done.wait(_PAUSE_S) and self.lost is None:
                if self.stood() > STILL_S:
                    for rank, process in self.visible.items():
                        if _gone(process):
                            self._lose(rank, "its process has ended")
                if self.lost is None and store.check([_KEY]):
                    self._set(_said(store.get(_KEY)), own=False)
        except RuntimeError as error:  # the store is gone, and with it rank 0, or the training has ended
            time.sleep(_PAUSE_S)  # a rank that listens to rank 0 says that better
            if self.with_lifeline:
                what = f"rank 0, or torchrun's agent, which served the ranks' store, has gone ({first_line(error)})"
                self._set(what, own=True)

    def _lose(self, rank: int, why: str) -> None:
        """The main thread learns it at once; the store, which may be silent for long, and who was first, afterwards."""
        one, finder = self.identities[rank], str(self.world.rank)
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
        """What `lost` is from now on; None where nobody may be lost any more, or one was before."""
        with self.lock:
            if self.done.is_set() or self.lost is not None:
                return None
            self.lost = LostRankError(text, own=own)
            return self.lost


def _said(value: bytes) -> str:
    return value.decode().partition("\n")[2]


def _seen(one: Identity) -> psutil.Process | None:
    """The process, if it is on this host and not hidden from here."""
    try:
        process = psutil.Process(one.pid)
        here = one.host == socket.gethostname() and abs(process.create_time() - one.born) < 1
    except psutil.Error:
        return None
    return process if here else None


def _gone(process: psutil.Process) -> bool:
    """Whether it has ended; its launcher may not have asked for its exit code yet."""
    try:
        return not process.is_running() or process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
