"""Signals that ask a process to stop, heard by a thread: at once, whatever the main thread waits for. No torch."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from distcnn.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, DistcnnError, StoppedError

# USR1 and USR2: a scheduler's warning before the time limit or a preemption. TERM: a scheduler's or torchrun's last
# word before KILL. INT: Ctrl-C.
CAUGHT = tuple(getattr(signal, name) for name in ("SIGINT", "SIGUSR1", "SIGUSR2", "SIGTERM") if hasattr(signal, name))


class StopSignal:
    """The signal that this process got. It ends the process at once, until `defer`; then it is only noted.

    A second Ctrl-C ends it at once in either case, whatever the process is in the middle of.
    """

    def __init__(self, end: Callable[[DistcnnError], None] = lambda _: None) -> None:
        self.end = end  # does not come back
        self.number = 0  # of the signal; 0 while there was none
        self.deferred = False

    def defer(self) -> None:
        """Only note a signal from now on: there is something to save first."""
        if threading.current_thread() is threading.main_thread() and signal.getsignal(CAUGHT[0]) is _nothing:
            _install(_nothing)  # again: NCCL and others may have put handlers of their own over these
        self.deferred = True

    def note(self, number: int) -> None:
        """Take notice of a signal that has come."""
        if number == signal.SIGINT and self.number == signal.SIGINT:
            self.end(stopped(number, "a second time"))
        self.number = number
        if not self.deferred:
            self.end(stopped(number, "before the first step, with nothing to save"))


@contextmanager
def catching_signals(end: Callable[[DistcnnError], None] = lambda _: None) -> Iterator[StopSignal]:
    """Hear of signals in the StopSignal that this yields; put the old handlers back after it. Main thread only.

    Python runs a handler between two of its own instructions, never while the main thread stands in a collective or
    waits for other ranks. So the handler does nothing, and a thread hears of the signal through a socket
    (`signal.set_wakeup_fd`). It calls `end` where the process has to end at once.
    """
    received = StopSignal(end)
    heard, told = socket.socketpair()
    told.setblocking(False)

    def listen() -> None:
        while numbers := heard.recv(1):
            if numbers[0] in CAUGHT:
                received.note(numbers[0])

    listener = threading.Thread(target=listen, name="distcnn-signals", daemon=True)
    listener.start()
    old_told = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    old = _install(_nothing)
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_told)
        told.shutdown(socket.SHUT_RDWR)  # the listener reads the end; to close it is not enough: workers have copies
        listener.join()
        told.close()
        heard.close()


def stopped(number: int, when: str) -> StoppedError:
    """Return the exception that ends the run: exit code 130 for Ctrl-C, else 75, the scheduler's "requeue me"."""
    name = signal.Signals(number).name
    code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED
    return StoppedError(f"stopped by {name} {when}; exit code {code}", code)


def _nothing(*_: object) -> None:
    pass


def _install(handler: Any) -> dict[int, Any]:
    return {number: signal.signal(number, handler) for number in CAUGHT}
