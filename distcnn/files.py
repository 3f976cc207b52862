"""Atomic file replacement, locks, and announcements of long waits."""

import errno
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from distcnn.rank import rank_from_env

FIRST_S = 5.0  # seconds until a wait is announced


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; sync it to disk and rename it into place if nothing failed.

    A kill at any moment leaves the old file, or none, and perhaps a `.partial`. Raises OSError.
    """
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError, also for a pipe and the like, which could block forever."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, os.strerror(code) if stat.S_ISDIR(mode) else "Not a regular file", str(path))
    return os.fdopen(handle, "rb")


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Print `rank R on HOST has waited N s for WHAT` to stderr after 5 s, and again after 10, 20, 40, … s."""
    done = threading.Event()
    started = time.monotonic()

    def announce() -> None:
        pause = FIRST_S
        while not done.wait(pause):
            passed = time.monotonic() - started
            rank = rank_from_env(os.environ)[0]
            print(
                f"rank {rank} on {socket.gethostname()} has waited {passed:.0f} s for {what}",
                file=sys.stderr,
                flush=True,
            )
            pause = passed  # doubling

    thread = threading.Thread(target=announce, name="distcnn-waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file, so that one process at a time does `what`; across hosts only if the file system shares locks.

    Waits of over 5 s are announced, and `what` itself if it takes that long.
    """
    lock = FileLock(path)
    with waiting(f"another process: {what}"):
        lock.acquire()
    try:
        with waiting(what):
            yield
    finally:
        lock.release()
