"""Hang detection: ends this rank when nothing moves, or when another rank has gone, and says which one is to blame."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from typing_extensions import Self

from distcnn.distributed import flight_recorder
from distcnn.distributed.blame import blamed
from distcnn.distributed.collectives import gather_objects
from distcnn.distributed.device_clock import DeviceClock
from distcnn.distributed.device_wait import wait_for_device
from distcnn.distributed.heartbeat import Heartbeat, Heartbeats
from distcnn.distributed.patience import patiently
from distcnn.distributed.peers import STILL_S, Peers
from distcnn.distributed.process import RankProcess
from distcnn.distributed.watch import Watch
from distcnn.distributed.world import World
from distcnn.errors import DistcnnError, StoppedError, first_line

_FRAMES = 16  # of a stack, the innermost
_WAITS = ("gradient sync", "agreement")  # phases in which a rank stands still for the others
_LAST_WORDS_S = 60.0  # for a checkpoint that is being written, or for the main thread to end by itself
_LOG_S = 5.0  # to write a line of the log


class Watchdog(Watch):
    """Ends this rank when its main thread has not moved for most of `train.timeout`, and says which rank is to blame.

    Two threads: one exchanges heartbeats with the others, the other looks at the clock. A rank that has been silent for
    half of that time is missing: stopped, dead, or on a host that is gone. If none is missing, the ranks that are
    behind all others are to blame.

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
        """`store` is the process group's, None for a single rank, which is not watched.

        `end` ends the process, whatever the main thread does; `log` gets a sentence about why, before. NCCL's traces
        are written into the run's `folder`.
        """
        super().__init__(device or torch.device("cpu"))
        self.world, self.end, self.folder, self.log = world, end, folder, log
        cuda, alone = self.device.type == "cuda", store is None
        self.timeout_s = timeout_s
        self.limit_s = float("inf") if alone else 0.8 * timeout_s  # a single rank keeps none waiting
        self.pause_s = min(5.0, timeout_s / 20)
        self.clock = DeviceClock(self.device) if cuda and not alone else None
        self.heartbeats = Heartbeats(world, store, self._heartbeat, self.pause_s)
        self.peers = None if alone else Peers(world, store, self._stood_s, lifeline=cuda)
        # torchrun's workers are in sessions of their own, and would train on when their agent has been killed.
        self.agent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self.process, self.main_thread = RankProcess.own(), threading.get_ident()

        self.phase, self.step, self.phase_count = "start", 0, 0  # phases since the step began
        self.since = time.monotonic()  # when the phase began
        self.raised = False  # the main thread is on its way out with what Peers has found
        self.done = threading.Event()

    def enter(self, phase: str) -> None:
        """Note that the main thread begins another phase. Called several times a step; costs next to nothing."""
        now = time.monotonic()
        if self.phase in _WAITS:
            self.waited_s += now - self.since
        elif self.phase == "data":
            self.data_s += now - self.since
        self.phase, self.since = phase, now
        self.phase_count += 1
        if self.clock is not None:
            self.clock.enter(phase)

    def steps_done(self, step: int) -> None:
        """Note that the main thread has done `step` steps."""
        self.step, self.phase_count = step, 0
        if self.clock is not None:
            self.clock.step_issued(step)

    def wait_for_device(self) -> float:
        """Wait until the device has done what it was given; return the seconds. On a CPU do nothing.

        Raises LostRankError as soon as another rank is known to have gone, for which the device may wait without end.
        """

        def lost() -> Exception | None:
            error = self.peers.lost if self.peers is not None else None
            self.raised = error is not None
            return error

        return wait_for_device(self.device, lost)

    def device_busy_s(self) -> float:
        """Return the device's own seconds in the steps since the last call, after `wait_for_device`."""
        return self.clock.busy_s() if self.clock is not None else 0.0

    def __enter__(self) -> Self:
        """Begin to watch. A collective."""
        if self.folder is not None:
            flight_recorder.forget(self.folder, self.world.rank)
        processes = self.heartbeats.begin()
        self.since = time.monotonic()  # what came before, as opening trackers, is not watched
        self._start(self._watch, "distcnn-watchdog")
        if self.clock is not None:
            self._start(partial(self.clock.keep_looking, self.done, self._look_s), "distcnn-device-clock")
        if self.peers is not None:
            self._start(partial(self.heartbeats.exchange, self.done, self._is_stuck), "distcnn-heartbeats")
            self.peers.begin(processes)
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

    @staticmethod
    def _start(work: Callable[[], None], name: str) -> None:
        threading.Thread(target=work, name=name, daemon=True).start()

    def _heartbeat(self, count: int) -> Heartbeat:
        stack = "".join(traceback.format_stack(sys._current_frames()[self.main_thread])[-_FRAMES:])
        device = self.clock.place() if self.clock is not None else None
        return Heartbeat(count, self.process, self.step, self.phase_count, self.phase, stack, device)

    def _stood_s(self) -> float:
        """Return the seconds since the main thread has last moved."""
        return time.monotonic() - self.since

    def _is_stuck(self) -> bool:
        return self._stood_s() > 3 * self.pause_s

    @property
    def _look_s(self) -> float:
        return min(1.0, self.pause_s / 2)

    def _watch(self) -> None:
        while not self.done.wait(self._look_s):
            if self.agent not in (None, os.getppid()):
                self.end(DistcnnError("torchrun's agent has died, which would have started this rank again"))
            if self.peers is not None and self.peers.lost is not None and self._stood_s() > STILL_S:
                if not self._main_thread_ends():
                    self._end_with(self._report_loss)
                return
            if self._stood_s() > self.limit_s:
                self._end_with(self._report_hang)
                return

    def _end_with(self, report: Callable[[list[str]], None]) -> None:
        """End, whatever happens in the report, which adds its lines to a list; none where another rank reports."""
        lines: list[str] = []
        try:
            report(lines)
        except Exception as error:
            lines.append(f"the report ends here, by {type(error).__name__}: {first_line(error)}")
        finally:
            lost = self.peers.lost if self.peers is not None else None
            why = "; ".join(line for line in lines if not line.startswith(" ")) or f"{lost or ''}"  # without stacks
            with suppress(Exception):  # the main thread may stand in a tracker, or the disk be the reason
                patiently(lambda _: self.log(why), _LOG_S)
            self.end(DistcnnError("\n".join(lines)))

    def _main_thread_ends(self) -> bool:
        """Another rank has gone: return whether the main thread ends by itself. It may be where it cannot hear of it.

        Where it does hear of it, in a collective or in the wait for the device, it soon has left, and has logged why.
        While a checkpoint is being written, it is waited for, and the main thread may wait for it too.
        """
        began = moved = time.monotonic()
        while (now := time.monotonic()) < min(moved + STILL_S, began + _LAST_WORDS_S, began + self.limit_s):
            if self.raised or any(thread.name == "distcnn-saver" for thread in threading.enumerate()):
                moved = now
            if self.done.wait(0.1):
                return True
        return False

    def _report_loss(self, lines: list[str]) -> None:
        lost = self.peers.lost if self.peers is not None else None
        if lost is not None and lost.own:  # else the rank that found it reports
            lines += [str(lost), self._here()]

    def _report_hang(self, lines: list[str]) -> None:
        traced = self.folder is not None and flight_recorder.dump(self.folder, self.world.rank)
        missing = self.heartbeats.missing(self.limit_s / 2)
        if min(self.heartbeats.ranks - missing) < self.world.rank:
            self.done.wait(4 * self.pause_s)  # the first of the others that live reports
            return
        lines.append(self._here())
        lines.extend(blamed(self.heartbeats, missing))
        if traced and self.folder is not None:
            self.done.wait(2 * self.pause_s)  # the others write theirs
            dumps = flight_recorder.read(self.folder, self.world.size)
            own = flight_recorder.trace_path(self.folder, self.world.rank)
            lines.append(flight_recorder.first_unmatched(dumps, self.world.size) or "all that NCCL has begun has ended")
            lines.append(f"NCCL's last exchanges: {own}, and of the other ranks")

    def _here(self) -> str:
        own = self._heartbeat(0)
        return (
            f"rank {self.world.rank} of {self.world.size} on {own.process.host} has stood in {own.phase} of step "
            f"{own.step + 1} for {self._stood_s():.0f} s (train.timeout = {self.timeout_s:g}){own.progress}"
        )
