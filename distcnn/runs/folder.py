"""A run's folder: created, locked by one process, and identified to trackers by an id."""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from distcnn.config.schema import Config
from distcnn.errors import InputError
from distcnn.files import atomic_file, waiting

_LOCK, _OWNER, _ID = ".lock", ".owner", "run_id"


@contextmanager
def run_folder(config: Config) -> Iterator[Path]:
    """Create and lock the run's folder; a context manager.

    With `checkpoint.resume: auto` it is the named folder, otherwise the first of name, name-2, … that does not exist.
    Raises InputError if it cannot be created, or if another process is training in it.
    """
    with ExitStack() as held:
        try:
            folder = _make(config)
            held.enter_context(_locked(folder))
        except OSError as error:
            problem = f"output_dir = {config.output_dir}: {error.strerror}; give a folder that can be written"
            raise InputError(problem) from error
        yield folder


def _make(config: Config) -> Path:
    name = config.name or "run"
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    if config.checkpoint.resume == "auto":
        (output / name).mkdir(exist_ok=True)
        return output / name
    for folder in (output / (name if n == 1 else f"{name}-{n}") for n in count(1)):
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("count() does not end")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder. A killed process releases it at once, on a network file system within about a minute."""
    lock, owner = FileLock(folder / _LOCK), folder / _OWNER
    me = f"process {os.getpid()} on {socket.gethostname()}"
    try:
        other = owner.read_text(encoding="utf-8", errors="replace")
    except OSError:
        other = "another process"
    try:
        with waiting(f"{other}, which may train in {folder}"):
            lock.acquire(timeout=10 if other.endswith(f" on {socket.gethostname()}") else 90)
    except Timeout:
        raise InputError(
            f"output_dir, name: {folder} is in use by {other}; wait for it to end, or give another --name"
        ) from None
    try:
        with suppress(OSError):  # a full disk
            owner.write_text(me, encoding="utf-8")
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Return whether a process is training in the folder; False if that cannot be determined."""
    path = folder / _LOCK
    try:
        if not path.exists():
            return False
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):  # a folder of another user, or a file system without locks
        return False


def run_id(folder: Path) -> str:
    """Return the run's id for trackers, created at its first start and kept afterwards."""
    path = folder / _ID
    if not path.exists():
        with atomic_file(path) as partial:
            partial.write_text(secrets.token_hex(4) + "\n", encoding="ascii")
    return path.read_text(encoding="ascii").strip()


def unwritable(folder: Path) -> str | None:
    """Return why a folder cannot be created or written to; None if it can. Changes nothing."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        return f"{existing} is not a folder; give a folder that can be written"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{existing} cannot be written; give a folder that can"
    return None
