"""Signals set a flag; all ranks agree on it at a step boundary, so that they stop at the same step."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from distcnn.distributed.shutdown import watch_group
from distcnn.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, DistcnnError, StoppedError

# USR1 and USR2: a scheduler's warning before the time limit or a preemption. TERM: a scheduler's or torchrun's last
# word before KILL. INT: Ctrl-C.
CAUGHT = tuple(getattr(signal, name) for name in ("SIGINT", "SIGUSR1", "SIGUSR2", "SIGTERM") if hasattr(signal, name))


class StopRequest:
    """Whether this run was asked to stop.

    Before `begin` there is nothing to save, and a signal ends the process at once. After it, a signal is only noted;
    the loop asks `agreed` after each step. A second Ctrl-C ends at once, whatever the process is in the middle of.
    """

    def __init__(self, end: Callable[[DistcnnError], None] = lambda _: None) -> None:
        self.end = end  # does not come back
        self.number = 0  # of the signal; 0 while there was none
        self.training = False
        self.group: Any = None  # of torch.distributed
        self.flags: Any = None  # [2] int64: the number, and whether to save, that are being agreed on
        self.work: Any = None

    def begin(self, timeout_s: float) -> None:
        """From now on signals wait for a step boundary. A collective: called on all ranks, in the process group."""
        import torch.distributed as dist

        if threading.current_thread() is threading.main_thread() and signal.getsignal(CAUGHT[0]) is _nothing:
            _install(_nothing)  # again: NCCL and others may have put handlers of their own over these
        if dist.is_initialized():
            # gloo even beside NCCL: the flag stays on the host, and no step waits for the GPU because of it.
            self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
            watch_group(self.group)
        self.training = True

    def agreed(self, save: bool = False) -> tuple[int, bool]:
        """The signal that any rank has got, 0 for none, and whether any wants to save; equal on all ranks.

        A collective, called after each step. The answer is that of the exchange begun at the call before, which had
        a whole step to travel.
        """
        if self.group is None:
            return self.number, save
        import torch
        import torch.distributed as dist

        number, saving = 0, 0
        if self.work is not None:
            self.work.wait()
            number, saving = self.flags.tolist()
        self.flags = torch.tensor([self.number, int(save)])
        self.work = dist.all_reduce(self.flags, dist.ReduceOp.MAX, group=self.group, async_op=True)
        return number, bool(saving)

    def note(self, number: int) -> None:
        """A signal has come."""
        if number == signal.SIGINT and self.number == signal.SIGINT:
            self.end(stopped(number, "a second time"))
        self.number = number
        if not self.training:
            self.end(stopped(number, "before the first step, with nothing to save"))


@contextmanager
def catching_signals(end: Callable[[DistcnnError], None]) -> Iterator[StopRequest]:
    """A StopRequest that hears of signals; the old handlers are put back after it.

    Python runs a handler between two of its own instructions, never while the main thread stands in a collective or
    waits for other ranks. So the handler does nothing, and a thread hears of the signal through a socket
    (`signal.set_wakeup_fd`). It calls `end` where the process has to end at once.
    """
    stop = StopRequest(end)
    heard, told = socket.socketpair()
    told.setblocking(False)

    def listen() -> None:
        while numbers := heard.recv(1):
            if numbers[0] in CAUGHT:
                stop.note(numbers[0])

    listener = threading.Thread(target=listen, name="distcnn-signals", daemon=True)
    listener.start()
    old_told = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    old = _install(_nothing)
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_told)
        told.shutdown(socket.SHUT_RDWR)  # the listener reads the end; to close it is not enough: workers have copies
        listener.join()
        told.close()
        heard.close()


def stopped(number: int, when: str) -> StoppedError:
    """The exception that ends the run: exit code 130 for Ctrl-C, 75 ("requeue me") for the scheduler's signals."""
    name = signal.Signals(number).name
    code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED
    return StoppedError(f"stopped by {name} {when}; exit code {code}", code)


def _nothing(*_: object) -> None:
    pass


def _install(handler: Any) -> dict[int, Any]:
    return {number: signal.signal(number, handler) for number in CAUGHT}
