"""Signals set a flag; all ranks agree on it at a step boundary, so that they stop at the same step."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any

from distcnn.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, Stopped

# USR1 and USR2: a scheduler's warning before the time limit or a preemption. TERM: a scheduler's or torchrun's last
# word before KILL. INT: Ctrl-C.
CAUGHT = tuple(getattr(signal, name) for name in ("SIGINT", "SIGUSR1", "SIGUSR2", "SIGTERM") if hasattr(signal, name))


class StopRequest:
    """Whether this run was asked to stop.

    Before `begin` there is nothing to save, and a signal ends the process where it stands, by raising Stopped.
    After it, a signal is only noted; the loop asks `agreed` after each step. A second Ctrl-C ends at once.
    """

    def __init__(self) -> None:
        self.number = 0  # of the signal; 0 while there was none
        self.training = False
        self.group: Any = None  # of torch.distributed
        self.flag: Any = None  # [] int64: the number that is being agreed on
        self.work: Any = None

    def begin(self, timeout_s: float) -> None:
        """From now on signals wait for a step boundary. A collective: called on all ranks, in the process group."""
        import torch.distributed as dist

        if threading.current_thread() is threading.main_thread() and signal.getsignal(CAUGHT[0]) == self._catch:
            _install(self._catch)  # again: NCCL and others may have put handlers of their own over these
        if dist.is_initialized():
            # gloo even beside NCCL: the flag stays on the host, and no step waits for the GPU because of it.
            self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self.training = True

    def agreed(self) -> int:
        """The signal that any rank has got, equal on all ranks at each step; 0 for none. A collective.

        The answer is that of the exchange begun at the call before, which had a whole step to travel.
        """
        if self.group is None:
            return self.number
        import torch
        import torch.distributed as dist

        answer = 0
        if self.work is not None:
            self.work.wait()
            answer = int(self.flag)
        self.flag = torch.tensor(self.number)
        self.work = dist.all_reduce(self.flag, dist.ReduceOp.MAX, group=self.group, async_op=True)
        return answer

    def _catch(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.number == signal.SIGINT:
            os._exit(EXIT_INTERRUPTED)
        self.number = number
        if not self.training:
            raise stopped(number, "before the first step, with nothing to save")


@contextmanager
def catching_signals() -> Iterator[StopRequest]:
    """Install the handlers of a StopRequest, and put the old ones back."""
    stop = StopRequest()
    old = _install(stop._catch)
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def stopped(number: int, when: str) -> Stopped:
    """The exception that ends the run: exit code 130 for Ctrl-C, 75 ("requeue me") for the scheduler's signals."""
    name = signal.Signals(number).name
    code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED
    return Stopped(f"stopped by {name} {when}; exit code {code}", code)


def _install(handler: Any) -> dict[int, Any]:
    return {number: signal.signal(number, handler) for number in CAUGHT}
