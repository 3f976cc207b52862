"""Which rank is missing? Each tells the others, through the store, where it stands; when nothing moves, they say so."""

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, TypeVar

import psutil
from typing_extensions import Self

from distcnn.errors import DistcnnError
from distcnn.parallel.collectives import gather_objects
from distcnn.parallel.world import World

T = TypeVar("T")
_FRAMES = 16  # of a stack, the innermost
_WAITS = ("gradient sync", "agreement")  # phases in which a rank stands still for the others
_SPEAKERS = 4  # so many ranks know of all the others; the rest know of these, so that a large job's store has rest


@dataclass(frozen=True)
class Beat:
    """A rank's sign of life."""

    count: int
    host: str
    pid: int
    born: float  # the process's creation time: another process may get its number
    step: int  # steps done
    moves: int  # phases entered since then
    phase: str
    stack: str

    @property
    def place(self) -> tuple[int, int]:
        """Comparable between ranks, which go through the same phases."""
        return self.step, self.moves


class Watchdog:
    """Ends this rank when its main thread has not moved for most of `train.timeout`, and says which rank is to blame.

    Two threads: one exchanges beats with the others, over a connection of its own that may block (the store is served
    by a rank, or by torchrun's agent); the other looks at the clock. A rank that has been silent for half of that time
    is missing: stopped, dead, or on a host that is gone. If none is missing, the ranks that are behind all others are
    to blame. A missing process of this host is killed, so that its launcher does not wait for it.
    """

    def __init__(self, world: World, store: Any, timeout_s: float, end: Callable[[DistcnnError], None]):
        self.world, self.store, self.end = world, store, end
        self.timeout_s = timeout_s
        self.limit_s = 0.8 * timeout_s if store is not None else float("inf")  # a single rank keeps nobody waiting
        # torchrun's workers are in sessions of their own, and would train on when their agent has been killed.
        self.agent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self.pause_s = min(5.0, timeout_s / 20)
        self.phase, self.step, self.moves = "start", 0, 0
        self.moved = time.monotonic()
        self.waited_s = 0.0  # the main thread has stood still for the others; on CUDA the host's view of it
        self.others = set(range(world.size if world.rank < _SPEAKERS else min(_SPEAKERS, world.size)))
        self.seen: dict[int, tuple[Beat, float]] = {}  # by rank: the newest beat, and when it came
        self.watched = threading.get_ident()
        self.done = threading.Event()

    def enter(self, phase: str) -> None:
        """The main thread begins something else. Called several times a step; costs next to nothing."""
        now = time.monotonic()
        if self.phase in _WAITS:
            self.waited_s += now - self.moved
        self.phase = phase
        self.moves += 1
        self.moved = now

    def each(self, items: Iterable[T], phase: str) -> Iterator[T]:
        """Enter the phase anew for each of the items."""
        for item in items:
            self.enter(phase)
            yield item

    def steps_done(self, step: int) -> None:
        """The main thread has done so many steps."""
        self.step, self.moves = step, 0

    def __enter__(self) -> Self:
        """A collective: a rank that stops before its first beat has come is known to the others all the same."""
        for rank, beat in enumerate(gather_objects(self._beat(0, psutil.Process()))):
            if rank in self.others:
                self._note(rank, beat)
        self.moved = time.monotonic()  # what came before, as opening trackers, is not watched
        for work in (self._watch, self._exchange)[: 1 if self.store is None else 2]:
            threading.Thread(target=work, name="distcnn-watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.done.set()

    def _exchange(self) -> None:
        me, world = psutil.Process(), self.world
        try:
            store = self.store.clone()
            count = 0
            while not self.done.wait(self.pause_s if count else 0):
                count += 1
                store.set(f"beat/{world.rank}", json.dumps(asdict(self._beat(count, me))))
                # Rank 0's always: it may serve the store, which is then as silent as itself.
                for rank in self.others if self._stood() > 3 * self.pause_s else (0,):
                    if store.check([f"beat/{rank}"]):
                        self._note(rank, Beat(**json.loads(store.get(f"beat/{rank}"))))
        except (RuntimeError, KeyError):  # the store or the watched thread has ended: there is nobody left to tell
            return

    def _beat(self, count: int, me: psutil.Process) -> Beat:
        stack = "".join(traceback.format_stack(sys._current_frames()[self.watched])[-_FRAMES:])
        return Beat(count, socket.gethostname(), me.pid, me.create_time(), self.step, self.moves, self.phase, stack)

    def _note(self, rank: int, beat: Beat) -> None:
        if rank not in self.seen or self.seen[rank][0].count != beat.count:
            self.seen[rank] = beat, time.monotonic()

    def _stood(self) -> float:
        return time.monotonic() - self.moved

    def _watch(self) -> None:
        while not self.done.wait(self.pause_s / 2):
            if self.agent not in (None, os.getppid()):
                self.end(DistcnnError("torchrun's agent has died, which would have started this rank again"))
            if self._stood() > self.limit_s:
                break
        else:
            return
        self._accuse()

    def _accuse(self) -> None:
        me, ranks = self.world.rank, self.others | {self.world.rank}
        silent = {rank: time.monotonic() - at for rank, (_, at) in self.seen.items() if rank != me}
        missing = {rank for rank in ranks - {me} if silent.get(rank, self.timeout_s) > self.limit_s / 2}
        if min(ranks - missing) < me:
            self.done.wait(4 * self.pause_s)  # the first of the others that live speaks
            self.end(DistcnnError(""))
        here = [
            f"rank {self.world.rank} of {self.world.size} on {socket.gethostname()} has stood in {self.phase} of step "
            f"{self.step + 1} for {self._stood():.0f} s (train.timeout = {self.timeout_s:g})"
        ]
        others = {rank: beat for rank, (beat, _) in self.seen.items()}
        last = min((beat.place for rank, beat in others.items() if rank not in missing), default=(0, 0))
        behind = missing or {rank for rank, beat in others.items() if beat.place == last}
        if behind == ranks:
            here.append("all ranks stand at the same place: is the network between them broken?")
            behind = {me} & set(others)
        for rank in sorted(behind):
            beat = others[rank]
            sign = "alive, but behind the others, in"
            if rank in missing:
                sign = f"no sign of life for {silent[rank]:.0f} s, last seen in"
            here.append(
                f"rank {rank} on {beat.host}, process {beat.pid}: {sign} {beat.phase} of step {beat.step + 1}, at"
            )
            here.append(beat.stack.rstrip())
            if rank in missing and _kill(beat):
                here.append(f"rank {rank}'s process is killed, so that nobody waits for it")
        self.end(DistcnnError("\n".join(here)))


def _kill(beat: Beat) -> bool:
    """Whether the process was on this host, and has been killed."""
    try:
        if beat.host == socket.gethostname() and psutil.Process(beat.pid).create_time() == beat.born:
            os.kill(beat.pid, signal.SIGKILL)
            return True
    except (psutil.Error, OSError):
        pass
    return False
