"""A folder of images, decoded once per node into a memory-mapped uint8 cache that its ranks share."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import Field
from rich.console import Console
from rich.progress import track

from distcnn.config.schema import Config, DataConfig
from distcnn.config.types import Float
from distcnn.data.sources.image_set import ImageSet, Split
from distcnn.distributed.cores import cores
from distcnn.errors import InputError
from distcnn.files import locked
from distcnn.registry import Problem, checked_by

TEST_NAMES = ("test", "val", "valid", "validation")
_FORMAT = 1  # version of the cache, part of its key
_CHUNK = 64  # images per task


def _check(config: Config, args: Mapping[str, Any]) -> Iterator[Problem]:
    if not Path(config.data.root).is_dir():
        yield ("data.root",), "no such folder; it should hold train/<class>/ and test/<class>/, or <class>/ alone"


@checked_by(_check)
def folder(
    config: DataConfig,
    split: Split,
    *,
    test_fraction: Annotated[
        Float,
        Field(gt=0, lt=1, description="without train/ and test/: fraction of each class kept for testing"),
    ] = 0.1,
) -> ImageSet:
    """Read a tree of images, resized to `data.image_size`, with file names relative to the root.

    The tree is `root/train/<class>/…` and `root/test/<class>/…` (or val, valid, validation), or `root/<class>/…`
    alone, of which a fixed `test_fraction` of each class is kept for testing. Raises InputError, which names every
    unreadable file.
    """
    root = Path(config.root).resolve()
    if not root.is_dir():
        raise InputError(f"data.root = {config.root}: no such folder")
    tests = [root / name for name in TEST_NAMES if (root / name).is_dir()]
    if (root / "train").is_dir() or tests:
        if split == "test" and len(tests) != 1:
            raise InputError(f"data.root = {root}: should hold exactly one of {', '.join(TEST_NAMES)} beside train")
        if split == "train" and not (root / "train").is_dir():
            raise InputError(f"data.root = {root}: holds {tests[0].name}/ but no train/")
        classes, files, labels = _listing(root / "train" if split == "train" else tests[0])
    else:
        classes, files, labels = _listing(root)
        chosen = stratified_split(np.asarray(labels), test_fraction)[split]
        if len(chosen) == 0:
            raise InputError(
                f"data.root = {root}: no class has a second image to keep for testing; add images or a test/ folder"
            )
        files, labels = [files[i] for i in chosen], [labels[i] for i in chosen]
    names = [file[len(str(root)) + 1 :] for file in files]
    cache = _cache_folder(config) / _key(root, files, config.image_size)
    _build_once(cache, files, config.image_size)
    images = _mapped(cache, len(files), config.image_size)
    return ImageSet(images, np.asarray(labels, np.int64), classes, names if split == "test" or config.holdout else ())


def stratified_split(labels: NDArray[np.int64], test_fraction: float) -> dict[str, NDArray[np.int64]]:
    """Split rows: `test` gets `test_fraction` of each class, at least one image of a class that has two."""
    rng, test = np.random.default_rng(0), []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(max(1, round(len(rows) * test_fraction)), len(rows) - 1)
        test.append(rng.permutation(rows)[:count])
    chosen = np.sort(np.concatenate(test))
    return {"train": np.setdiff1d(np.arange(len(labels)), chosen), "test": chosen}


def _listing(tree: Path) -> tuple[tuple[str, ...], list[str], list[int]]:
    """List the class names, and every file below them with its label. Hidden files are ignored."""
    classes = tuple(sorted(d.name for d in tree.iterdir() if d.is_dir() and not d.name.startswith(".")))
    if not classes:
        raise InputError(f"data.root: {tree} holds no class folders; images should be in {tree}/<class>/")
    loose = sorted(p.name for p in tree.iterdir() if p.is_file() and not p.name.startswith("."))
    if any(Path(name).suffix.lower() in Image.registered_extensions() for name in loose):
        raise InputError(f"data.root: {tree} holds images outside any class folder: {', '.join(loose[:5])}")
    files: list[str] = []  # strings: creating a million Path objects takes seconds
    labels: list[int] = []
    empty = []
    for label, name in enumerate(classes):
        found = sorted(files_below(tree / name))
        files += found
        labels += [label] * len(found)
        empty += [name] * (not found)
    if empty:
        raise InputError([f"data.root: {tree / name}: no images of this class" for name in empty])
    return classes, files, labels


def files_below(folder: Path) -> Iterator[str]:
    """Yield all files below a folder, recursively, without hidden ones."""
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(where, name) for name in names if not name.startswith("."))  # noqa: PTH118


def _cache_folder(config: DataConfig) -> Path:
    if config.cache_dir:
        return Path(config.cache_dir)
    return default_cache()


def default_cache() -> Path:
    """Return the default folder of decoded images: $DISTCNN_CACHE, or ~/.cache/distcnn."""
    return Path(os.environ.get("DISTCNN_CACHE") or Path.home() / ".cache" / "distcnn")


def _mapped(cache: Path, count: int, size: int) -> NDArray[np.uint8]:
    path = cache / "images.npy"
    try:
        # Copy-on-write: all ranks share the pages, and PyTorch gets a writable array, without which it warns.
        images = np.load(path, mmap_mode="c", allow_pickle=False)
        if images.shape != (count, size, size, 3) or images.dtype != np.uint8:
            raise ValueError(f"it holds {images.shape} of {images.dtype}")
    except Exception as error:  # a damaged header can make NumPy raise anything
        raise InputError(f"{path}: damaged ({error}); remove {cache} to decode the images again") from error
    mapped: NDArray[np.uint8] = images
    return mapped


def _key(root: Path, files: list[str], size: int) -> str:
    """Hash the files' names, sizes and times; ctime changes with every write, even one that restores size and mtime."""
    digest = hashlib.sha256(f"{_FORMAT} {size} {root}".encode())
    for file in files:
        try:
            stat = os.stat(file)  # noqa: PTH116
        except OSError:  # a dangling link, which decoding reports
            continue
        digest.update(
            f"{file}\0{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}\n".encode(errors="surrogateescape")
        )
    return digest.hexdigest()[:24]


def _build_once(cache: Path, files: list[str], size: int) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with locked(cache.with_suffix(".lock"), f"decoding {len(files):,} images into {cache.parent}"):
            if not cache.is_dir():
                _build(cache, files, size)
    except OSError as error:
        raise InputError(
            f"data.cache_dir = {cache.parent}: {error.strerror or error}; decoded images need "
            f"{len(files) * size * size * 3 / 1e6:.0f} MB in a folder that can be written"
        ) from error


def _build(cache: Path, files: list[str], size: int) -> None:
    """Decode into a temporary folder and rename it into place: the cache is complete or absent."""
    partial = cache.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process, as the lock is held
    partial.mkdir()
    try:
        path = partial / "images.npy"
        images = np.lib.format.open_memmap(path, "w+", np.uint8, (len(files), size, size, 3))
        with path.open("r+b") as handle:  # allocate now: on a full disk, a mapped write would raise SIGBUS
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)

        def decode_chunk(start: int) -> list[str]:
            return [problem for row in range(start, min(start + _CHUNK, len(files))) if (problem := decode_into(row))]

        def decode_into(row: int) -> str | None:
            try:
                images[row] = decode(files[row], size)
            except Exception as error:  # Pillow can raise anything on malformed files
                return f"{files[row]}: not readable as an image ({type(error).__name__}: {error})"
            return None

        with ThreadPoolExecutor(cores()) as pool:  # Pillow releases the GIL while it decodes and resizes
            starts = range(0, len(files), _CHUNK)
            bar = track(
                pool.map(decode_chunk, starts),
                f"decoding {len(files)} images",
                len(starts),
                console=Console(stderr=True),
                transient=True,
            )
            unreadable = [problem for problems in bar for problem in problems]
        if unreadable:
            raise InputError(unreadable)
        images.flush()
        (partial / "files.json").write_text(json.dumps(files))
        partial.rename(cache)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def decode(path: str | Path, size: int) -> NDArray[np.uint8]:
    """Decode an image to [size, size, 3] uint8: EXIF orientation applied, shorter side resized, centre crop."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode == "I" or image.mode.startswith("I;16"):  # 16-bit grey, which convert() would clip at 255
            image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
        return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC))
