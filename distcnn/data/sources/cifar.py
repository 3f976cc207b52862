"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): downloaded once, by the first process, and read as untrusted files.

File names, URLs and checksums are torchvision's. Its readers are not used: they unpickle arbitrary objects, which can
run code from an archive of another URL, and they download and extract in place, without a lock.
"""

import io
import pickle
import shutil
import tarfile
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from rich.console import Console
from rich.progress import wrap_file
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import check_integrity

from distcnn.config.schema import Config, DataConfig
from distcnn.data.sources.image_set import ImageSet, Split, check_32_pixels
from distcnn.errors import InputError
from distcnn.files import locked
from distcnn.registry import Problem, checked_by

# All globals that the pickles of the original archives use.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"),
    ("numpy", "dtype"), ("_codecs", "encode"),
}  # fmt: skip


class _PlainUnpickler(pickle.Unpickler):
    """Load arrays, numbers and strings only, so that a batch file cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"its pickle uses {module}.{name}")
        return super().find_class(module, name)


def _check(config: Config, args: Mapping[str, Any]) -> Iterator[Problem]:
    if args["md5"] is not None and args["url"] is None:
        yield ("data.args.md5", "data.args.url"), "a checksum applies only to an archive given by data.args.url"
    yield from check_32_pixels(config, args)


Url = Annotated[str | None, Field(description="download the archive from this URL instead of the publisher's")]
Md5 = Annotated[
    str | None,
    Field(pattern="^[0-9a-f]{32}$", description="checksum of the archive at `url`, if it is not the original"),
]


@checked_by(_check)
def cifar10(config: DataConfig, split: Split, *, url: Url = None, md5: Md5 = None) -> ImageSet:
    """Load CIFAR-10 (50,000 training and 10,000 test images) from `data.root`, downloading it there if it is missing.

    `url` is another archive in the same format; its checksum `md5` replaces those of the original files. Raises
    InputError if the data cannot be downloaded or is damaged.
    """
    return _cifar("cifar10", CIFAR10, Path(config.root), split, url, md5)


@checked_by(_check)
def cifar100(config: DataConfig, split: Split, *, url: Url = None, md5: Md5 = None) -> ImageSet:
    """Load CIFAR-100 (50,000 training and 10,000 test images), as `cifar10` does."""
    return _cifar("cifar100", CIFAR100, Path(config.root), split, url, md5)


def _cifar(name: str, dataset: Any, root: Path, split: Split, url: str | None, md5: str | None) -> ImageSet:
    folder = root / dataset.base_folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f".{name}.lock", f"downloading {name} into {root}"):
            if not folder.is_dir():
                _download(name, dataset, root, url or dataset.url, md5 or dataset.tgz_md5)
        parts = dataset.train_list if split == "train" else dataset.test_list
        checked = md5 is None
        batches = [_read(folder / file, known if checked else None) for file, known in parts]
        meta = _read(folder / dataset.meta["filename"], dataset.meta["md5"] if checked else None)
        images = np.concatenate([_images(batch["data"]) for batch in batches])
        key = "labels" if "labels" in batches[0] else "fine_labels"
        labels = np.concatenate([np.asarray(batch[key], np.int64) for batch in batches])
        classes = tuple(map(str, meta[dataset.meta["key"]]))
        if len(images) != len(labels) or not 0 <= labels.min() <= labels.max() < len(classes):
            raise ValueError("images, labels and classes do not match")
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"data.root = {root}: {error.strerror or error}") from error
    except Exception as error:  # a damaged file can make pickle or NumPy raise anything
        raise InputError(
            f"data.root = {root}: {folder} is damaged or incomplete ({error}); remove it to download it again"
        ) from error
    return ImageSet(images, labels, classes)


def _files(dataset: Any) -> list[str]:
    return [name for name, _ in (*dataset.train_list, *dataset.test_list)] + [dataset.meta["filename"]]


def _read(path: Path, md5: str | None) -> dict[str, Any]:
    if not path.is_file() or not check_integrity(path, md5):
        raise ValueError(f"{path.name} is missing or has the wrong checksum")
    content = _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} does not hold a dict")
    return content


def _images(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reshape [n, 3072] uint8, channels first, to [n, 32, 32, 3]."""
    if data.dtype != np.uint8:
        raise ValueError("the images are not uint8")
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _download(source: str, dataset: Any, root: Path, url: str, md5: str) -> None:
    """Download, verify and extract into a temporary folder, then rename it into place: it is complete or absent."""
    # One name for all attempts: the lock is held, so an existing folder was left by a killed process.
    partial = root / f".{source}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    archive = root / dataset.filename  # may have been placed there by hand, on machines without a network
    try:
        if not (archive.is_file() and check_integrity(archive, md5)):
            archive = partial / dataset.filename
            _fetch(url, archive)
            if not check_integrity(archive, md5):
                raise OSError(f"the downloaded file does not have the checksum {md5}")
        (partial / dataset.base_folder).mkdir()
        with tarfile.open(archive) as files:
            for name in _files(dataset):  # by name: the archive cannot choose what is written, or where
                part = files.extractfile(f"{dataset.base_folder}/{name}")
                if part is None:
                    raise tarfile.TarError(f"{name} is not a file in the archive")
                with part, (partial / dataset.base_folder / name).open("wb") as file:
                    shutil.copyfileobj(part, file)
        (partial / dataset.base_folder).rename(root / dataset.base_folder)
    except (OSError, HTTPException, tarfile.TarError, EOFError, KeyError) as error:  # urllib's errors are OSErrors
        raise InputError(
            f"data.source = {source}: not in {root}, and {url} could not be downloaded ({error}). "
            f"Without a network: put {dataset.filename} or its folder {dataset.base_folder}/ into {root}; or train on "
            "images of your own (--data.source folder --data.root DIR), or on --data.source digits or synthetic"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fetch(url: str, path: Path) -> None:
    """Download with a progress bar; raises OSError if the server sends nothing for 60 s or too little in all."""
    with urllib.request.urlopen(url, timeout=60) as response, path.open("wb") as file:
        size = int(response.headers.get("Content-Length", 0)) or None
        console = Console(stderr=True)
        with wrap_file(
            response, size or 0, description=f"downloading {path.name}", console=console, transient=True
        ) as body:
            shutil.copyfileobj(body, file)
        if size is not None and file.tell() != size:
            raise OSError(f"the connection ended after {file.tell()} of {size} bytes")
