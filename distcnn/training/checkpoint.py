"""Checkpoints: whole or absent, loadable without running code from them, found again by themselves.

A checkpoint is one zip file as `torch.save` writes it, with a CRC-32 for each record. It is written beside its
final name, synced and renamed, so that a kill at any moment leaves the old files and perhaps a `.partial`.
"""

import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from distcnn.errors import BadInput

FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})\.pt")


class Checkpoints:
    """The checkpoints of one run folder. Only rank 0 saves; every rank may look and load."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, keep

    def save(self, state: dict[str, Any], step: int, *, best: bool) -> Path:
        """Write `step-NNNNNNNN.pt`, make it `best.pt` too if it is, and remove older ones beyond `keep`.

        A failure (OSError, or RuntimeError from PyTorch's writer) leaves all earlier checkpoints as they were.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.pt"
        with whole_file(path) as partial:
            torch.save({"format": FORMAT, **state}, partial)
        if best:
            with whole_file(self.folder / "best.pt") as partial:
                _link(path, partial)
        for old in self.all()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def all(self) -> list[Path]:
        """The step checkpoints, newest first, whole or not."""
        steps = [
            (int(match[1]), path) for path in self.folder.glob("step-*.pt") if (match := _NAME.fullmatch(path.name))
        ]
        return [path for _, path in sorted(steps, reverse=True)]

    def newest_whole(self) -> tuple[Path | None, list[Path]]:
        """The newest checkpoint that passes its checksums, and the damaged ones newer than it."""
        damaged: list[Path] = []
        for path in self.all():
            if is_whole(path):
                return path, damaged
            damaged.append(path)
        return None, damaged


def is_whole(path: Path) -> bool:
    """Whether every record of the file matches its checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError):
        return False


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's content on the CPU: tensors and plain values only. Raises BadInput where there is none."""
    if not path.is_file():
        raise BadInput(f"{path}: no such checkpoint")
    if not is_whole(path):
        raise BadInput(f"{path}: damaged, or not a checkpoint; use another one of its folder")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # weights_only refuses foreign content with a handful of exception types
        reason = str(error).strip().splitlines()[0]
        raise BadInput(f"{path}: not a checkpoint of distcnn: {reason}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise BadInput(f"{path}: not a checkpoint of distcnn in format {FORMAT} (found {found})")
    return state


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; renames it into place, synced to the disk, if nothing failed."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # file systems without hard links
        shutil.copyfile(source, target)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
