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
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import psutil
import torch
from typing_extensions import Self

from distcnn.errors import DistcnnError, Stopped
from distcnn.parallel import flight_recorder
from distcnn.parallel.collectives import gather_objects
from distcnn.parallel.device_clock import DeviceClock
from distcnn.parallel.device_wait import wait_for_device
from distcnn.parallel.peers import STILL_S, Identity, Peers
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
    device_step: int | None = None  # steps that the device has done; None on a CPU, which is never behind

    @property
    def progress(self) -> str:
        """Where the device is, if that is another place."""
        if self.device_step is None:
            return ""
        return f" (the host has issued step {self.step}, the device has done step {self.device_step})"

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

    Where another rank's process has gone, Peers knows it, and this rank ends within seconds. On a GPU it says too how
    far the device is, which may be behind the host, and what NCCL was doing.
    """

    def __init__(
        self,
        world: World,
        store: Any,
        timeout_s: float,
        end: Callable[[DistcnnError], None],
        device: torch.device | None = None,
        folder: Path | None = None,
    ):
        """`end` ends the process, whatever the main thread does. NCCL's traces are written into the run's `folder`."""
        self.world, self.store, self.end, self.folder = world, store, end, folder
        self.device = device or torch.device("cpu")
        cuda = self.device.type == "cuda"
        self.clock = DeviceClock(self.device) if cuda and store is not None else None
        self.peers = Peers(world, store, self._stood, lifeline=cuda) if store is not None else None
        self.timeout_s = timeout_s
        self.limit_s = 0.8 * timeout_s if store is not None else float("inf")  # a single rank keeps nobody waiting
        # torchrun's workers are in sessions of their own, and would train on when their agent has been killed.
        self.agent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self.pause_s = min(5.0, timeout_s / 20)
        self.phase, self.step, self.moves = "start", 0, 0
        self.moved = time.monotonic()
        self.waited_s = 0.0  # the main thread has stood still for the others; on CUDA the host's view of it
        self.data_s = 0.0  # it has made, or waited for, batches
        self.others = set(range(world.size if world.rank < _SPEAKERS else min(_SPEAKERS, world.size)))
        self.seen: dict[int, tuple[Beat, float]] = {}  # by rank: the newest beat, and when it came
        self.watched = threading.get_ident()
        self.done = threading.Event()

    def enter(self, phase: str) -> None:
        """The main thread begins something else. Called several times a step; costs next to nothing."""
        now = time.monotonic()
        if self.phase in _WAITS:
            self.waited_s += now - self.moved
        elif self.phase == "data":
            self.data_s += now - self.moved
        self.phase = phase
        self.moves += 1
        self.moved = now
        if self.clock is not None:
            self.clock.enter(phase)

    def each(self, items: Iterable[T], phase: str) -> Iterator[T]:
        """Enter the phase anew for each of the items."""
        for item in items:
            self.enter(phase)
            yield item

    def steps_done(self, step: int) -> None:
        """The main thread has done so many steps."""
        self.step, self.moves = step, 0
        if self.clock is not None:
            self.clock.step_issued(step)

    def wait_for_device(self) -> float:
        """Wait until the device has done what it was given; returns the seconds. On a CPU nothing happens.

        Raises LostRankError as soon as another rank is known to have gone, for which the device may wait without end.
        """
        return wait_for_device(self.device, lambda: self.peers.lost if self.peers is not None else None)

    def device_busy_s(self) -> float:
        """The device's own seconds in the steps since the last call, after `wait_for_device`."""
        return self.clock.busy_s() if self.clock is not None else 0.0

    def __enter__(self) -> Self:
        """A collective: a rank that stops before its first beat has come is known to the others all the same."""
        if self.folder is not None:
            flight_recorder.forget(self.folder, self.world.rank)
        beats = gather_objects(self._beat(0, psutil.Process()))
        for rank, beat in enumerate(beats):
            if rank in self.others:
                self._note(rank, beat)
        self.moved = time.monotonic()  # what came before, as opening trackers, is not watched
        for work in (self._watch, self._exchange)[: 1 if self.store is None else 2]:
            threading.Thread(target=work, name="distcnn-watchdog", daemon=True).start()
        if self.peers is not None:
            self.peers.begin([Identity(beat.host, beat.pid, beat.born) for beat in beats])
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """A collective where all ranks leave together, done or stopped: then none has gone before all have left."""
        together = self.peers is not None and (kind is None or issubclass(kind, Stopped))
        try:
            if self.peers is not None:
                self.peers.leave()
            if together:
                gather_objects(None)
        finally:
            self.done.set()
        if self.peers is not None and together:
            self.peers.close()

    def _exchange(self) -> None:
        me, world = psutil.Process(), self.world
        if self.clock is not None:
            self.clock.in_this_thread()
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
        return Beat(
            count, socket.gethostname(), me.pid, me.create_time(), self.step, self.moves, self.phase, stack,
            self.clock.steps_done() if self.clock is not None else None,
        )  # fmt: skip

    def _note(self, rank: int, beat: Beat) -> None:
        if rank not in self.seen or self.seen[rank][0].count != beat.count:
            self.seen[rank] = beat, time.monotonic()

    def _stood(self) -> float:
        return time.monotonic() - self.moved

    def _watch(self) -> None:
        if self.clock is not None:
            self.clock.in_this_thread()
        while not self.done.wait(min(1.0, self.pause_s / 2)):
            if self.agent not in (None, os.getppid()):
                self.end(DistcnnError("torchrun's agent has died, which would have started this rank again"))
            if self.peers is not None and self.peers.lost is not None and self._stood() > STILL_S:
                self._end_lost(self.peers)
            if self._stood() > self.limit_s:
                break
        else:
            return
        self._accuse()

    def _end_lost(self, peers: Peers) -> None:
        """Another rank has gone, and the main thread stands where it does not hear of it."""
        if not peers.found:
            self.done.wait(STILL_S)  # the rank that found it speaks
            self.end(DistcnnError(""))
        self.end(DistcnnError(f"{peers.lost}\n{self._here()}"))

    def _here(self) -> str:
        own = self._beat(0, psutil.Process())
        return (
            f"rank {self.world.rank} of {self.world.size} on {own.host} has stood in {own.phase} of step "
            f"{own.step + 1} for {self._stood():.0f} s (train.timeout = {self.timeout_s:g}){own.progress}"
        )

    def _accuse(self) -> None:
        traced = self.folder is not None and flight_recorder.dump(self.folder, self.world.rank)
        me, ranks = self.world.rank, self.others | {self.world.rank}
        silent = {rank: time.monotonic() - at for rank, (_, at) in self.seen.items() if rank != me}
        missing = {rank for rank in ranks - {me} if silent.get(rank, self.timeout_s) > self.limit_s / 2}
        if min(ranks - missing) < me:
            self.done.wait(4 * self.pause_s)  # the first of the others that live speaks
            self.end(DistcnnError(""))
        here = [self._here()]
        others = {rank: beat for rank, (beat, _) in self.seen.items()}
        last = min((beat.place for rank, beat in others.items() if rank not in missing), default=(0, 0))
        behind = missing or {rank for rank, beat in others.items() if beat.place == last}
        if behind == ranks and len({beat.device_step for beat in others.values()}) > 1:
            slowest = min(beat.device_step or 0 for beat in others.values())
            behind = {rank for rank, beat in others.items() if beat.device_step == slowest}
        if behind == ranks:
            here.append("all ranks stand at the same place: is the network between them broken?")
            behind = {me} & set(others)
        for rank in sorted(behind):
            beat = others[rank]
            sign = "alive, but behind the others, in"
            if rank in missing:
                sign = f"no sign of life for {silent[rank]:.0f} s, last seen in"
            here.append(
                f"rank {rank} on {beat.host}, process {beat.pid}: {sign} {beat.phase} of step {beat.step + 1}"
                f"{beat.progress}, at"
            )
            here.append(beat.stack.rstrip())
            if rank in missing and _kill(beat):
                here.append(f"rank {rank}'s process is killed, so that nobody waits for it")
        if traced and self.folder is not None:
            self.done.wait(2 * self.pause_s)  # the others write theirs
            dumps = flight_recorder.read(self.folder, self.world.size)
            here.append(flight_recorder.first_unmatched(dumps, self.world.size) or "all that NCCL has begun has ended")
            here.append(f"NCCL's last exchanges: {flight_recorder.trace_path(self.folder, me)}, and of the other ranks")
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
