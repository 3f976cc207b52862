"""Checkpoint files: written atomically, verified by a checksum, and loaded without running code from them.

A checkpoint is a zip file as written by `torch.save`, followed by a SHA-256 of everything before it. It is written to a
`.partial` file, synced and renamed, so that a kill at any moment leaves the earlier checkpoints intact.
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

FORMAT = 3
_SEAL = 32  # bytes of a SHA-256
_ALLOWED = ("torch._utils _rebuild_tensor_v2", "collections OrderedDict")  # globals in a pickle, besides storages
_NAME = re.compile(r"step-\d{8,}\.pt")


class Checkpoints:
    """The checkpoints of one run folder. Only rank 0 may save; every rank may list and load."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, keep

    def save(self, state: dict[str, Any], step: int, *, best: bool) -> Path:
        """Write `step-NNNNNNNN.pt`, and `best.pt` too if `best`; then remove older ones beyond `keep`.

        Raises OSError, or RuntimeError from PyTorch's writer; earlier checkpoints are then left unchanged.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.pt"
        # Before and after: however often the process is killed in between, at most one extra file remains.
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
        """Remove checkpoints up to `step` that exceed `keep` and are older than a valid one, and `.partial` files.

        Damaged checkpoints of later steps, from before a resume, are neither counted nor removed.
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
        """List the step checkpoints, newest first, valid or not."""
        found = [path for path in self.folder.glob("step-*.pt") if _NAME.fullmatch(path.name)]
        return sorted(found, key=step_of, reverse=True)

    def newest_valid(self) -> tuple["ValidFile | None", list[Path]]:
        """Return the newest checkpoint that matches its checksum, and the damaged ones newer than it."""
        damaged: list[Path] = []
        for path in self.all():
            if file := read_valid(path):
                return file, damaged
            damaged.append(path)
        return None, damaged


@dataclass(frozen=True)
class ValidFile:
    """The content of a checkpoint that matches its checksum; read once."""

    path: Path
    content: bytes = field(repr=False)

    def load(self) -> dict[str, Any]:
        """Load the state on the CPU: tensors and plain values only. Raises InputError if it is not distcnn's."""
        try:
            _check_records(self.content)
            state = torch.load(io.BytesIO(self.content), map_location="cpu", weights_only=True)
            _check_storages(state)
        except Exception as error:  # weights_only rejects foreign content with various exception types
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{self.path}: not a distcnn checkpoint: {reason}") from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            found = state.get("format") if isinstance(state, dict) else type(state).__name__
            raise InputError(f"{self.path}: not a distcnn checkpoint of format {FORMAT} (found {found})")
        return state


def step_of(path: Path) -> int:
    """Return the step after which a checkpoint was saved, from its file name."""
    return int(path.stem.removeprefix("step-"))


def read_valid(path: Path) -> ValidFile | None:
    """Read a file; None unless it ends with the checksum of everything before it.

    The CRC-32s of the zip format cover the records only: a flipped bit in its directory can corrupt weights unnoticed.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
    except (OSError, MemoryError):  # MemoryError: some other, huge file
        return None
    body = memoryview(content)[:-_SEAL]
    return ValidFile(path, content) if body and hashlib.sha256(body).digest() == content[-_SEAL:] else None


def is_valid(path: Path) -> bool:
    """Return whether the file ends with the checksum of everything before it."""
    return read_valid(path) is not None


def seal(path: Path) -> None:
    """Append the checksum as the zip comment; its length goes into the last two bytes of the archive."""
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
    """Read a checkpoint. Raises InputError if it is missing or damaged."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    file = read_valid(path)
    if file is None:
        raise InputError(f"{path}: damaged, or not a checkpoint; use another one from the same folder")
    return file


def _check_records(content: bytes) -> None:
    """Raise ValueError for content that could make a small file large in memory; the checksum is not a signature.

    PyTorch's weights_only prevents code execution, but allows `bytearray(10**10)` and compressed records.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("it holds compressed records")
        if sum(record.file_size for record in records) > len(content):
            raise ValueError("its records overlap")
        programs = [record for record in records if record.filename.endswith("/data.pkl")]
        if len(programs) != 1:
            raise ValueError("it does not hold exactly one pickle")
        for code, argument, _ in pickletools.genops(archive.read(programs[0])):
            if "GLOBAL" in code.name or code.name == "INST":
                module, _, name = str(argument).partition(" ")
                if argument not in _ALLOWED and not (module == "torch" and name.endswith("Storage")):
                    raise ValueError(f"its pickle uses {argument}")


def _check_storages(tree: Any) -> None:
    """Raise ValueError if a tensor is larger than its storage, a huge view of a few bytes."""
    if isinstance(tree, torch.Tensor):
        if tree.numel() * tree.element_size() > tree.untyped_storage().nbytes():
            raise ValueError(f"a tensor of shape {list(tree.shape)} is larger than its storage")
    elif isinstance(tree, dict):
        for value in tree.values():
            _check_storages(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            _check_storages(value)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # file systems without hard links
        shutil.copyfile(source, target)
