"""Free space, permissions and speed of the folders that a training writes to."""

import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from distcnn.doctor.findings import Finding, fail, ok, warn
from distcnn.doctor.situation import Situation

GB, MB = 1e9, 1e6
_NEEDED = 1 * GB


def output_dir(situation: Situation) -> Iterator[Finding]:
    """Check the folder of runs."""
    yield _disk("output_dir", situation.output_dir, "--output_dir")


def cache(situation: Situation) -> Iterator[Finding]:
    """Check the folder of decoded images."""
    yield _disk("cache", situation.cache_dir, "$DISTCNN_CACHE")


def _disk(name: str, folder: Path, key: str) -> Finding:
    """Check where a folder is, or would be created; `key` is the option that chooses another."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    status = os.statvfs(existing)
    free = status.f_bavail * status.f_frsize
    more_room = f"make room, or choose another folder with {key}"
    if not os.access(existing, os.W_OK | os.X_OK) or status.f_flag & os.ST_RDONLY:
        return fail(name, f"{existing} cannot be written", f"choose another folder with {key}")
    if status.f_files and status.f_favail < 100:
        return fail(
            name,
            f"{existing}: only {status.f_favail} more files fit",
            f"remove some, or choose another folder with {key}",
        )
    if free < _NEEDED / 20:
        return fail(name, f"{existing}: {free / MB:,.0f} MB free", more_room)
    try:
        speed = _write_speed(existing, int(min(16 * MB, free / 4)))
    except OSError as error:
        return fail(name, f"{existing}: {error.strerror}", more_room)
    text = f"{existing}: {free / GB:,.1f} GB free, writes {speed / MB:,.0f} MB/s to the disk"
    if free < _NEEDED:
        return warn(name, text, more_room)
    if speed < 10 * MB:
        return warn(name, text, f"choose a faster disk with {key}, or save less often with checkpoint.every")
    return ok(name, text)


def _write_speed(folder: Path, size: int) -> float:
    """Write, sync and remove a file of `size` bytes; return bytes per second. Raises OSError."""
    path = folder / f".distcnn-doctor-{socket.gethostname()}-{os.getpid()}"
    content = os.urandom(1 << 20)
    count = max(1, size // len(content))
    try:
        started = time.perf_counter()
        with path.open("wb", buffering=0) as file:
            for _ in range(count):
                if file.write(content) != len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        return count * len(content) / (time.perf_counter() - started)
    finally:
        path.unlink(missing_ok=True)
