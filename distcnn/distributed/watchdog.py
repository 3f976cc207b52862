"""Hang detection: ends this rank if it makes no progress or another rank is gone, and names the rank to blame."""

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
from distcnn.distributed.peers import IDLE_S, Peers
from distcnn.distributed.process import RankProcess
from distcnn.distributed.timeout import call_with_timeout
from distcnn.distributed.watch import Watch
from distcnn.distributed.world import World
from distcnn.errors import DistcnnError, StoppedError, first_line

_FRAMES = 16  # innermost frames of a reported stack
_WAITS = ("gradient sync", "agreement")  # phases in which a rank waits for the others
_SHUTDOWN_S = 60.0  # for a checkpoint that is being written, or the main thread's own exit
_LOG_TIMEOUT_S = 5.0


class Watchdog(Watch):
    """Ends this rank if its main thread makes no progress for 0.8 of `train.timeout`, and names the rank to blame.

    One thread exchanges heartbeats, another checks the clock. A rank that has been silent for half of that time is
    missing: stopped, dead, or on a lost host. If none is missing, the ranks behind all others are to blame.

    On a GPU a third thread polls the device's progress: the host runs ahead of the device, so the device decides which
    rank is behind. That thread may block in CUDA; the other two never call it. The report includes NCCL's collectives.

    If another rank's process is gone, which Peers detects, this rank ends within seconds, but lets rank 0 finish what
    it is writing.
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

        `end` ends the process, whatever the main thread does; before it `log` gets the reason. NCCL's traces are
        written to the run's `folder`.
        """
        super().__init__(device or torch.device("cpu"))
        self.world, self.end, self.folder, self.log = world, end, folder, log
        cuda, alone = self.device.type == "cuda", store is None
        self.timeout_s = timeout_s
        self.limit_s = float("inf") if alone else 0.8 * timeout_s  # nothing waits for a single rank
        self.pause_s = min(5.0, timeout_s / 20)
        self.clock = DeviceClock(self.device) if cuda and not alone else None
        self.heartbeats = Heartbeats(world, store, self._heartbeat, self.pause_s)
        self.peers = None if alone else Peers(world, store, self._idle_s, lifeline=cuda)
        # torchrun's workers have their own sessions, and would train on if their agent is killed.
        self.agent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self.process, self.main_thread = RankProcess.own(), threading.get_ident()

        self.phase, self.step, self.phase_count = "start", 0, 0  # phases since the step began
        self.since = time.monotonic()  # when the phase began
        self.raised = False  # the main thread has raised what Peers detected
        self.done = threading.Event()

    def enter(self, phase: str) -> None:
        """Note that the main thread begins a phase. Called several times per step, so it must be cheap."""
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
        """Note that `step` steps are done."""
        self.step, self.phase_count = step, 0
        if self.clock is not None:
            self.clock.step_issued(step)

    def wait_for_device(self) -> float:
        """Wait until the device has finished its work; return the seconds. A no-op on a CPU.

        Raises LostRankError as soon as another rank is gone, as the device may wait for it forever.
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
        """Start watching. A collective."""
        if self.folder is not None:
            flight_recorder.remove(self.folder, self.world.rank)
        processes = self.heartbeats.begin()
        self.since = time.monotonic()  # setup, such as opening trackers, is not watched
        self._start(self._watch, "distcnn-watchdog")
        if self.clock is not None:
            self._start(partial(self.clock.keep_looking, self.done, self._poll_s), "distcnn-device-clock")
        if self.peers is not None:
            self._start(partial(self.heartbeats.exchange, self.done, self._is_stuck), "distcnn-heartbeats")
            self.peers.begin(processes)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """Stop watching; a collective if the run is done or stopped, so that no rank exits before all have left."""
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

    def _idle_s(self) -> float:
        """Return the seconds since the main thread last changed phase."""
        return time.monotonic() - self.since

    def _is_stuck(self) -> bool:
        return self._idle_s() > 3 * self.pause_s

    @property
    def _poll_s(self) -> float:
        return min(1.0, self.pause_s / 2)

    def _watch(self) -> None:
        while not self.done.wait(self._poll_s):
            if self.agent not in (None, os.getppid()):
                self.end(DistcnnError("torchrun's agent has died, and nothing would restart this rank"))
            if self.peers is not None and self.peers.lost is not None and self._idle_s() > IDLE_S:
                if not self._main_thread_ends():
                    self._end_with(self._report_loss)
                return
            if self._idle_s() > self.limit_s:
                self._end_with(self._report_hang)
                return

    def _end_with(self, report: Callable[[list[str]], None]) -> None:
        """End even if `report` fails. It appends lines to a list, or none if another rank reports."""
        lines: list[str] = []
        try:
            report(lines)
        except Exception as error:
            lines.append(f"the report stops here: {type(error).__name__}: {first_line(error)}")
        finally:
            lost = self.peers.lost if self.peers is not None else None
            why = "; ".join(line for line in lines if not line.startswith(" ")) or f"{lost or ''}"  # without stacks
            with suppress(Exception):  # a tracker or the disk may block it
                call_with_timeout(lambda _: self.log(why), _LOG_TIMEOUT_S)
            self.end(DistcnnError("\n".join(lines)))

    def _main_thread_ends(self) -> bool:
        """Return whether the main thread ends by itself once another rank is gone.

        In a collective, or waiting for the device, it gets an exception and soon leaves; elsewhere it may be blocked.
        Waits while a checkpoint is being written, as the main thread may.
        """
        began = moved = time.monotonic()
        while (now := time.monotonic()) < min(moved + IDLE_S, began + _SHUTDOWN_S, began + self.limit_s):
            if self.raised or any(thread.name == "distcnn-saver" for thread in threading.enumerate()):
                moved = now
            if self.done.wait(0.1):
                return True
        return False

    def _report_loss(self, lines: list[str]) -> None:
        lost = self.peers.lost if self.peers is not None else None
        if lost is not None and lost.own:  # otherwise the rank that detected it reports
            lines += [str(lost), self._own_place()]

    def _report_hang(self, lines: list[str]) -> None:
        traced = self.folder is not None and flight_recorder.dump(self.folder, self.world.rank)
        missing = self.heartbeats.missing(self.limit_s / 2)
        if min(self.heartbeats.ranks - missing) < self.world.rank:
            self.done.wait(4 * self.pause_s)  # a lower live rank reports
            return
        lines.append(self._own_place())
        lines.extend(blamed(self.heartbeats, missing))
        if traced and self.folder is not None:
            self.done.wait(2 * self.pause_s)  # for the other ranks' dumps
            dumps = flight_recorder.read(self.folder, self.world.size)
            own = flight_recorder.trace_path(self.folder, self.world.rank)
            lines.append(flight_recorder.first_unmatched(dumps, self.world.size) or "every NCCL collective has ended")
            lines.append(f"NCCL's last collectives: {own}, and the other ranks' files beside it")

    def _own_place(self) -> str:
        own = self._heartbeat(0)
        return (
            f"rank {self.world.rank} of {self.world.size} on {own.process.host} has been in {own.phase} of step "
            f"{own.step + 1} for {self._idle_s():.0f} s (train.timeout = {self.timeout_s:g}){own.progress}"
        )
