"""A wait that a person may wonder about says what it is for."""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from distcnn.parallel.world import spoken_rank

FIRST_S = 5.0


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Print `rank R on HOST waits for WHAT` to stderr after 5 s, and again after 10, 20, 40, … s."""
    done = threading.Event()
    started = time.monotonic()

    def speak() -> None:
        pause = FIRST_S
        while not done.wait(pause):
            passed = time.monotonic() - started
            rank = spoken_rank(os.environ)[0]
            print(
                f"rank {rank} on {socket.gethostname()} has waited {passed:.0f} s for {what}",
                file=sys.stderr,
                flush=True,
            )
            pause = passed  # doubling

    thread = threading.Thread(target=speak, name="distcnn-waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file: one process of this node at a time does `what`, and both it and the others say so."""
    lock = FileLock(path)
    with waiting(f"another process: {what}"):
        lock.acquire()
    try:
        with waiting(what):
            yield
    finally:
        lock.release()
