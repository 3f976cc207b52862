"""Checkpoint files: valid or absent, loadable without running code from them, found again by their names.

A checkpoint is one zip file as `torch.save` writes it, which ends in a SHA-256 of all before it. It is written beside
its final name, synced and renamed, so that a kill at any moment leaves the old files and perhaps a `.partial`.
"""

import hashlib
import io
import os
import pickletools
import re
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from distcnn.errors import InputError
from distcnn.files import atomic_file, open_regular

FORMAT = 2
_SEAL = 32  # bytes of a SHA-256
_NAMES = ("torch._utils _rebuild_tensor_v2", "collections OrderedDict")  # all that a checkpoint's pickle may call
_NAME = re.compile(r"step-\d{8,}\.pt")


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
        # Before and after: a kill in between leaves something, but several kills leave no more than one.
        self._clean(step, None)
        with atomic_file(path) as partial:
            torch.save({"format": FORMAT, **state}, partial)
            seal(partial)
        if best:
            with atomic_file(self.folder / "best.pt") as partial:
                _link(path, partial)
        self._clean(step, path)
        return path

    def _clean(self, step: int, valid: Path | None) -> None:
        """Remove what is beyond `keep` up to that step and older than a `valid` one, and what kills left half-written.

        Damaged ones of later steps, from before a resume, neither count nor are touched.
        """
        found = [path for path in self.all() if step_of(path) <= step]
        if len(found) > self.keep:
            valid = valid or next((path for path in found if is_valid(path)), None)
            for old in found[self.keep :]:
                if valid is not None and step_of(old) < step_of(valid):
                    old.unlink(missing_ok=True)
        for partial in self.folder.glob("*.partial"):
            partial.unlink(missing_ok=True)

    def all(self) -> list[Path]:
        """The step checkpoints, newest first, valid or not."""
        found = [path for path in self.folder.glob("step-*.pt") if _NAME.fullmatch(path.name)]
        return sorted(found, key=step_of, reverse=True)

    def newest_valid(self) -> tuple["ValidFile | None", list[Path]]:
        """The newest checkpoint that matches its checksum, and the damaged ones newer than it."""
        damaged: list[Path] = []
        for path in self.all():
            if file := read_valid(path):
                return file, damaged
            damaged.append(path)
        return None, damaged


@dataclass(frozen=True)
class ValidFile:
    """A checkpoint whose bytes were read once, and match its checksum."""

    path: Path
    content: bytes = field(repr=False)

    def load(self) -> dict[str, Any]:
        """What it holds, on the CPU: tensors and plain values only. Raises InputError for a file of another program."""
        try:
            _check_honest(self.content)
            state = torch.load(io.BytesIO(self.content), map_location="cpu", weights_only=True)
            _check_backed(state)
        except Exception as error:  # weights_only refuses foreign content with a handful of exception types
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{self.path}: not a checkpoint of distcnn: {reason}") from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            found = state.get("format") if isinstance(state, dict) else type(state).__name__
            raise InputError(f"{self.path}: not a checkpoint of distcnn in format {FORMAT} (found {found})")
        return state


def step_of(path: Path) -> int:
    """The number of the step that a checkpoint was saved after, by its name."""
    return int(path.stem.removeprefix("step-"))


def read_valid(path: Path) -> ValidFile | None:
    """Read a file; None unless it ends with the checksum of all that stands before it.

    The zip's own CRC-32s cover the records only: a flipped bit in its directory can turn weights into garbage.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
    except (OSError, MemoryError):  # MemoryError: of a file that is none of ours
        return None
    body = memoryview(content)[:-_SEAL]
    return ValidFile(path, content) if body and hashlib.sha256(body).digest() == content[-_SEAL:] else None


def is_valid(path: Path) -> bool:
    """Whether the file ends with the checksum of all that stands before it."""
    return read_valid(path) is not None


def seal(path: Path) -> None:
    """Append the checksum as the zip's comment, whose length is the archive's last two bytes."""
    with path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        assert file.read() == b"\0\0"
        file.seek(-2, os.SEEK_END)
        file.write(_SEAL.to_bytes(2, "little"))
        file.seek(0)
        body = hashlib.sha256()
        while part := file.read(1 << 20):
            body.update(part)
        file.write(body.digest())


def open_valid(path: Path) -> ValidFile:
    """Read a checkpoint. Raises InputError where there is none, or a damaged one."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    file = read_valid(path)
    if file is None:
        raise InputError(f"{path}: damaged, or not a checkpoint; use another one of its folder")
    return file


def _check_honest(content: bytes) -> None:
    """Refuse what could make a small file large in memory; the checksum is no signature. Raises ValueError.

    PyTorch's weights_only lets no code run, but it lets `bytearray(10**10)` and compressed records pass.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("it holds compressed records")
        if sum(record.file_size for record in records) > len(content):
            raise ValueError("its records overlap")
        programs = [record for record in records if record.filename.endswith("/data.pkl")]
        if len(programs) != 1:
            raise ValueError("it holds no state")
        for code, argument, _ in pickletools.genops(archive.read(programs[0])):
            if "GLOBAL" in code.name or code.name == "INST":
                module, _, name = str(argument).partition(" ")
                if argument not in _NAMES and not (module == "torch" and name.endswith("Storage")):
                    raise ValueError(f"it names {argument}")


def _check_backed(tree: Any) -> None:
    """Every element of every tensor lies in the file: none is a huge view of a few bytes. Raises ValueError."""
    if isinstance(tree, torch.Tensor):
        if tree.numel() * tree.element_size() > tree.untyped_storage().nbytes():
            raise ValueError(f"a tensor of shape {list(tree.shape)} is larger than what is stored of it")
    elif isinstance(tree, dict):
        for value in tree.values():
            _check_backed(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            _check_backed(value)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # file systems without hard links
        shutil.copyfile(source, target)
