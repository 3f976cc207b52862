"""metrics.jsonl: one JSON object per line, the source of truth."""

import errno
import json
import sys
from contextlib import suppress
from pathlib import Path

from distcnn.files import atomic_file
from distcnn.runs.records import Record, to_json


class JsonlTracker:
    """A Tracker that appends every record. On resume from `step`, it first removes later and incomplete lines.

    If the disk is full, lines are kept in memory until the next record, and training continues. Raises OSError if the
    file cannot be opened.
    """

    def __init__(self, path: Path, step: int = 0):
        self.path = path
        if path.exists():
            kept = [line for line in path.read_bytes().splitlines(keepends=True) if _is_until(line, step)]
            with atomic_file(path) as partial:
                partial.write_bytes(b"".join(kept))
        self.file = path.open("ab", buffering=0)
        self.end = self.file.tell()  # of the last complete line
        self.waiting: list[bytes] = []

    def log(self, record: Record) -> None:
        """Write one line. NaN and infinity, which JSON does not have, become null."""
        self.waiting.append((to_json(record) + "\n").encode())
        self._write()

    def _write(self) -> None:
        text = b"".join(self.waiting)
        try:
            if self.file.write(text) != len(text):
                raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            with suppress(OSError):
                self.file.truncate(self.end)
            if len(self.waiting) == 1:
                print(f"warning: {self.path}: {error.strerror}; lines are kept in memory", file=sys.stderr)
        else:
            self.end += len(text)
            self.waiting.clear()

    def finish(self, status: str, summary: Record) -> str | None:  # noqa: ARG002
        """Write pending lines and close the file; return how many lines were lost."""
        if self.waiting:
            self._write()
        self.file.close()
        return f"{len(self.waiting)} lines of {self.path.name}" if self.waiting else None


def _is_until(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError, RecursionError):  # a damaged line
        return False
