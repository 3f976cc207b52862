"""Which rank is missing? Each tells the others, through the store, where it stands; when nothing moves, they say so."""

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
from typing_extensions import Self

from distcnn.distributed import flight_recorder
from distcnn.distributed.collectives import gather_objects
from distcnn.distributed.device_clock import DeviceClock, DevicePlace
from distcnn.distributed.device_wait import wait_for_device
from distcnn.distributed.patience import patiently
from distcnn.distributed.peers import STILL_S, Identity, Peers
from distcnn.distributed.watch import Watch
from distcnn.distributed.world import World
from distcnn.errors import DistcnnError, StoppedError, first_line

_FRAMES = 16  # of a stack, the innermost
_WAITS = ("gradient sync", "agreement")  # phases in which a rank stands still for the others
_LAST_WORDS_S = 60.0  # a checkpoint that is being written may take to be whole, or the main thread to end by itself
_LOG_S = 5.0  # to write a line of the log
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
    device: DevicePlace | None = None  # None on a CPU, which is never behind, and where it is not known

    @classmethod
    def read(cls, text: str | bytes) -> "Beat":
        """What `write` has written."""
        fields = json.loads(text)
        device = fields.pop("device")
        return cls(**fields, device=DevicePlace(*device) if device else None)

    def write(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @property
    def progress(self) -> str:
        """Where the device is, if that is another place."""
        return f" (the host has issued step {self.step}, the device {self.device})" if self.device else ""

    @property
    def place(self) -> tuple[int, int]:
        """Comparable between ranks, which go through the same phases."""
        return self.step, self.moves


class Watchdog(Watch):
    """Ends this rank when its main thread has not moved for most of `train.timeout`, and says which rank is to blame.

    Two threads: one exchanges beats with the others, over a connection of its own that may block (the store is served
    by a rank, or by torchrun's agent); the other looks at the clock. A rank that has been silent for half of that time
    is missing: stopped, dead, or on a host that is gone. If none is missing, the ranks that are behind all others are
    to blame. A missing process of this host is killed, so that its launcher does not wait for it.

    On a GPU a third thread asks how far the device is: the host runs ahead of it, so that a rank is behind the others
    if its device is. That thread may stand still in CUDA, the other two never call it. What NCCL was doing is said too.

    Where another rank's process has gone, Peers knows it, and this rank ends within seconds; what rank 0 is writing is
    written first.
    """

    def __init__(
        self,
        world: World,
        store: Any,
        timeout_s: float,
        end: Callable[[DistcnnError], None],
        device: torch.device | None = None,
        folder: Path | None = None,
        log: Callable[[str], None] = lambda _: None,
    ):
        """`end` ends the process, whatever the main thread does; `log` gets a sentence about why, before.

        NCCL's traces are written into the run's `folder`.
        """
        self.world, self.store, self.end, self.folder, self.log = world, store, end, folder, log
        super().__init__(device or torch.device("cpu"))
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
        self.others = set(range(world.size if world.rank < _SPEAKERS else min(_SPEAKERS, world.size)))
        self.seen: dict[int, tuple[Beat, float]] = {}  # by rank: the newest beat, and when it came
        self.watched = threading.get_ident()
        self.raised = False  # the main thread is on its way out with what Peers has found
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

    def steps_done(self, step: int) -> None:
        """The main thread has done so many steps."""
        self.step, self.moves = step, 0
        if self.clock is not None:
            self.clock.step_issued(step)

    def wait_for_device(self) -> float:
        """Wait until the device has done what it was given; returns the seconds. On a CPU nothing happens.

        Raises LostRankError as soon as another rank is known to have gone, for which the device may wait without end.
        """

        def lost() -> Exception | None:
            error = self.peers.lost if self.peers is not None else None
            self.raised = error is not None
            return error

        return wait_for_device(self.device, lost)

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
        if self.clock is not None:
            look = partial(self.clock.keep_looking, self.done, self._look_s)
            threading.Thread(target=look, name="distcnn-device-clock", daemon=True).start()
        if self.peers is not None:
            self.peers.begin([Identity(beat.host, beat.pid, beat.born) for beat in beats])
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """A collective where all ranks leave together, done or stopped: then none has gone before all have left."""
        together = self.peers is not None and (kind is None or issubclass(kind, StoppedError))
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
        try:
            store = self.store.clone()
            count = 0
            while not self.done.wait(self.pause_s if count else 0):
                count += 1
                store.set(f"beat/{world.rank}", self._beat(count, me).write())
                # Rank 0's always: it may serve the store, which is then as silent as itself.
                for rank in self.others if self._stood() > 3 * self.pause_s else (0,):
                    if store.check([f"beat/{rank}"]):
                        self._note(rank, Beat.read(store.get(f"beat/{rank}")))
        except (RuntimeError, KeyError):  # the store or the watched thread has ended: there is nobody left to tell
            return

    def _beat(self, count: int, me: psutil.Process) -> Beat:
        stack = "".join(traceback.format_stack(sys._current_frames()[self.watched])[-_FRAMES:])
        return Beat(
            count, socket.gethostname(), me.pid, me.create_time(), self.step, self.moves, self.phase, stack,
            self.clock.place() if self.clock is not None else None,
        )  # fmt: skip

    def _note(self, rank: int, beat: Beat) -> None:
        if rank not in self.seen or self.seen[rank][0].count != beat.count:
            self.seen[rank] = beat, time.monotonic()

    def _stood(self) -> float:
        return time.monotonic() - self.moved

    @property
    def _look_s(self) -> float:
        return min(1.0, self.pause_s / 2)

    def _watch(self) -> None:
        while not self.done.wait(self._look_s):
            if self.agent not in (None, os.getppid()):
                self.end(DistcnnError("torchrun's agent has died, which would have started this rank again"))
            if self.peers is not None and self.peers.lost is not None and self._stood() > STILL_S:
                if not self._leaves():
                    self._end_with(self._say_lost)
                return
            if self._stood() > self.limit_s:
                self._end_with(self._accuse)
                return

    def _end_with(self, report: Callable[[list[str]], None]) -> None:
        """End, whatever happens in the report, which gets a list to put its lines into; none: another rank speaks."""
        said: list[str] = []
        try:
            report(said)
        except Exception as error:
            said.append(f"the report ends here, by {type(error).__name__}: {first_line(error)}")
        finally:
            lost = self.peers.lost if self.peers is not None else None
            why = "; ".join(one for one in said if not one.startswith(" ")) or f"{lost or ''}"  # without stacks
            with suppress(Exception):  # the main thread may stand in a tracker, or the disk be the reason
                patiently(lambda _: self.log(why), _LOG_S)
            self.end(DistcnnError("\n".join(said)))

    def _leaves(self) -> bool:
        """Another rank has gone: whether the main thread ends by itself. It may stand where it does not hear of it.

        Where it does hear of it, in an exchange or in the wait for the device, it soon has left, and has logged why.
        While a checkpoint is being written, it is waited for, and the main thread may wait for it too.
        """
        began = moved = time.monotonic()
        while (now := time.monotonic()) < min(moved + STILL_S, began + _LAST_WORDS_S, began + self.limit_s):
            if self.raised or any(thread.name == "distcnn-saver" for thread in threading.enumerate()):
                moved = now
            if self.done.wait(0.1):
                return True
        return False

    def _say_lost(self, said: list[str]) -> None:
        lost = self.peers.lost if self.peers is not None else None
        if lost is not None and lost.own:  # else the rank that found it speaks
            said.append(str(lost))
            said.append(self._here())

    def _here(self) -> str:
        own = self._beat(0, psutil.Process())
        return (
            f"rank {self.world.rank} of {self.world.size} on {own.host} has stood in {own.phase} of step "
            f"{own.step + 1} for {self._stood():.0f} s (train.timeout = {self.timeout_s:g}){own.progress}"
        )

    def _accuse(self, said: list[str]) -> None:
        traced = self.folder is not None and flight_recorder.dump(self.folder, self.world.rank)
        me, ranks = self.world.rank, self.others | {self.world.rank}
        silent = {rank: time.monotonic() - at for rank, (_, at) in self.seen.items() if rank != me}
        missing = {rank for rank in ranks - {me} if silent.get(rank, self.timeout_s) > self.limit_s / 2}
        if min(ranks - missing) < me:
            self.done.wait(4 * self.pause_s)  # the first of the others that live speaks
            return
        said.append(self._here())
        others = {rank: beat for rank, (beat, _) in self.seen.items()}
        behind = missing or _last(others)
        if behind == ranks:
            said.append("all ranks stand at the same place: is the network between them broken?")
            behind = {me}
        for rank in sorted(behind & set(others)):
            beat = others[rank]
            sign = "alive, but behind the others, in"
            if rank in missing:
                sign = f"no sign of life for {silent[rank]:.0f} s, last seen in"
            said.append(
                f"rank {rank} on {beat.host}, process {beat.pid}: {sign} {beat.phase} of step {beat.step + 1}"
                f"{beat.progress}, at"
            )
            said.append(beat.stack.rstrip())
            if rank in missing and _kill(beat):
                said.append(f"rank {rank}'s process is killed, so that nobody waits for it")
        if traced and self.folder is not None:
            self.done.wait(2 * self.pause_s)  # the others write theirs
            dumps = flight_recorder.read(self.folder, self.world.size)
            said.append(flight_recorder.first_unmatched(dumps, self.world.size) or "all that NCCL has begun has ended")
            said.append(f"NCCL's last exchanges: {flight_recorder.trace_path(self.folder, me)}, and of the other ranks")


def _last(beats: dict[int, Beat]) -> set[int]:
    """The ranks that are behind; all of them where none is.

    Where a device stands still, the hosts go on until they come to wait for theirs, or have issued as much as it takes.
    """
    devices = {rank: beat.device for rank, beat in beats.items() if beat.device is not None}
    if len(devices) == len(beats) and len({*devices.values()}) > 1:
        return {rank for rank, device in devices.items() if device == min(devices.values())}
    least = min((beat.place for beat in beats.values()), default=(0, 0))
    return {rank for rank, beat in beats.items() if beat.place == least}


def _kill(beat: Beat) -> bool:
    """Whether the process was on this host, and has been killed."""
    try:
        if beat.host == socket.gethostname() and psutil.Process(beat.pid).create_time() == beat.born:
            os.kill(beat.pid, signal.SIGKILL)
            return True
    except (psutil.Error, OSError):
        pass
    return False
