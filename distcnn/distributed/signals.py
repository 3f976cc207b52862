"""Signals that ask a process to stop, received in a thread, so that a blocked main thread is no delay. No torch."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from distcnn.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, DistcnnError, StoppedError

# USR1 and USR2: a scheduler's warning before the time limit or a preemption. TERM: sent by a scheduler or torchrun
# before KILL. INT: Ctrl-C.
CAUGHT = tuple(getattr(signal, name) for name in ("SIGINT", "SIGUSR1", "SIGUSR2", "SIGTERM") if hasattr(signal, name))


class StopSignal:
    """The signal that this process received. It ends the process at once, until `defer`; then it is only recorded.

    A second Ctrl-C always ends the process at once.
    """

    def __init__(self, end: Callable[[DistcnnError], None] = lambda _: None) -> None:
        self.end = end  # does not return
        self.number = 0  # of the signal; 0 for none
        self.deferred = False

    def defer(self) -> None:
        """Only record signals from now on: there is something to save first."""
        if threading.current_thread() is threading.main_thread() and signal.getsignal(CAUGHT[0]) is _ignore:
            _install(_ignore)  # again: libraries such as NCCL may have replaced the handlers
        self.deferred = True

    def record(self, number: int) -> None:
        """Record a received signal."""
        if number == signal.SIGINT and self.number == signal.SIGINT:
            self.end(stopped(number, "a second time"))
        self.number = number
        if not self.deferred:
            self.end(stopped(number, "before the first step, with nothing to save"))


@contextmanager
def catching_signals(end: Callable[[DistcnnError], None] = lambda _: None) -> Iterator[StopSignal]:
    """Yield a StopSignal that records signals; restore the old handlers on exit. Main thread only.

    Python runs a handler between two bytecode instructions, never while the main thread is blocked in a collective. So
    the handler does nothing, and a thread receives the signal through a socket (`signal.set_wakeup_fd`). The thread
    calls `end` if the process has to end at once.
    """
    received = StopSignal(end)
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        while numbers := reader.recv(1):
            if numbers[0] in CAUGHT:
                received.record(numbers[0])

    listener = threading.Thread(target=listen, name="distcnn-signals", daemon=True)
    listener.start()
    old_writer = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    old = _install(_ignore)
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_writer)
        writer.shutdown(
            socket.SHUT_RDWR
        )  # the listener reads EOF; closing is not enough, as worker processes have copies
        listener.join()
        writer.close()
        reader.close()


def stopped(number: int, when: str) -> StoppedError:
    """Return the exception that ends the run: exit code 130 for Ctrl-C, else 75, the scheduler's "requeue me"."""
    name = signal.Signals(number).name
    code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED
    return StoppedError(f"stopped by {name} {when}; exit code {code}", code)


def _ignore(*_: object) -> None:
    pass


def _install(handler: Any) -> dict[int, Any]:
    return {number: signal.signal(number, handler) for number in CAUGHT}
