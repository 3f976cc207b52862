"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): downloaded once, by the first process, and read without trusting the files.

Names, addresses and checksums are torchvision's. Its readers are not used: they unpickle whatever a file holds, which
may be code where the archive comes from another address, and they download and unpack in place, without a lock.
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
from distcnn.data.sources.image_set import ImageSet, Split, of_32_pixels
from distcnn.errors import InputError
from distcnn.files import locked
from distcnn.registry import Problem, checked_by

# All that the pickles of the original archives call.
_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"),
    ("numpy", "dtype"), ("_codecs", "encode"),
}  # fmt: skip


class _Plain(pickle.Unpickler):
    """Arrays, numbers and texts only: a batch file can run no code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _checksum_of_a_url(config: Config, args: Mapping[str, Any]) -> Iterator[Problem]:
    if args["md5"] is not None and args["url"] is None:
        yield ("data.args.md5", "data.args.url"), "a checksum is only taken for an archive at data.args.url"
    yield from of_32_pixels(config, args)


Url = Annotated[str | None, Field(description="download the archive from here instead of its publisher")]
Md5 = Annotated[
    str | None,
    Field(pattern="^[0-9a-f]{32}$", description="checksum of the archive at `url`, if it is not the original"),
]


@checked_by(_checksum_of_a_url)
def cifar10(config: DataConfig, split: Split, *, url: Url = None, md5: Md5 = None) -> ImageSet:
    """Give the 60,000 images of CIFAR-10 from `data.root`, into which they are downloaded. Raises InputError.

    With `url` another archive in the same format is taken, whose own checksum, `md5`, stands for those of its files.
    """
    return _cifar("cifar10", CIFAR10, Path(config.root), split, url, md5)


@checked_by(_checksum_of_a_url)
def cifar100(config: DataConfig, split: Split, *, url: Url = None, md5: Md5 = None) -> ImageSet:
    """Give the 60,000 images of CIFAR-100, as `cifar10` does."""
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
            raise ValueError("images, labels and classes do not fit each other")
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"data.root = {root}: {error.strerror or error}") from error
    except Exception as error:  # whatever a damaged file makes pickle or NumPy raise
        raise InputError(
            f"data.root = {root}: {folder} is damaged or incomplete ({error}); remove it, and it will be fetched again"
        ) from error
    return ImageSet(images, labels, classes)


def _files(dataset: Any) -> list[str]:
    return [name for name, _ in (*dataset.train_list, *dataset.test_list)] + [dataset.meta["filename"]]


def _read(path: Path, md5: str | None) -> dict[str, Any]:
    if not path.is_file() or not check_integrity(path, md5):
        raise ValueError(f"{path.name} is missing, or is not the original")
    content = _Plain(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no table")
    return content


def _images(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[n, 3072] → [n, 32, 32, 3]."""
    if data.dtype != np.uint8:
        raise ValueError("the images are not bytes")
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _download(source: str, dataset: Any, root: Path, url: str, md5: str) -> None:
    """Fetch, verify and unpack into a folder aside, then rename it into place: it is whole or absent."""
    # One name for all attempts: the lock is held, so what lies there was left by one that was killed.
    aside = root / f".{source}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    archive = root / dataset.filename  # put there by hand, for machines without a network
    try:
        if not (archive.is_file() and check_integrity(archive, md5)):
            archive = aside / dataset.filename
            _fetch(url, archive)
            if not check_integrity(archive, md5):
                raise OSError(f"what it sent does not have the checksum {md5}")
        (aside / dataset.base_folder).mkdir()
        with tarfile.open(archive) as files:
            for name in _files(dataset):  # no other: an archive decides neither where it writes nor what
                part = files.extractfile(f"{dataset.base_folder}/{name}")
                if part is None:
                    raise tarfile.TarError(f"{name} is no file in it")
                with part, (aside / dataset.base_folder / name).open("wb") as file:
                    shutil.copyfileobj(part, file)
        (aside / dataset.base_folder).rename(root / dataset.base_folder)
    except (OSError, HTTPException, tarfile.TarError, EOFError, KeyError) as error:  # urllib's own errors are OSErrors
        raise InputError(
            f"data.source = {source}: not in {root}, and {url} could not be downloaded ({error}). "
            f"Without a network: put {dataset.filename} or its folder {dataset.base_folder}/ into {root}; or train on "
            "images of your own (--data.source folder --data.root DIR), or on --data.source digits or synthetic"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _fetch(url: str, path: Path) -> None:
    """One request, with a progress bar; a server that falls silent for a minute is an error."""
    with urllib.request.urlopen(url, timeout=60) as response, path.open("wb") as file:
        size = int(response.headers.get("Content-Length", 0)) or None
        console = Console(stderr=True)
        with wrap_file(
            response, size or 0, description=f"downloading {path.name}", console=console, transient=True
        ) as body:
            shutil.copyfileobj(body, file)
        if size is not None and file.tell() != size:
            raise OSError(f"the connection ended after {file.tell()} of {size} bytes")
