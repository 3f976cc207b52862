"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): downloaded once by whoever comes first, read without trusting the files."""

import io
import pickle
import shutil
import tarfile
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import wrap_file

from distcnn.config.schema import DataConfig
from distcnn.errors import InputError
from distcnn.files import locked

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


def load_cifar(
    config: DataConfig, split: Literal["train", "test"]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """Images [N, 32, 32, 3] uint8, labels [N] int64 and class names. Raises InputError.

    Names, addresses and checksums are torchvision's. With `data.url` another archive in the same format is taken,
    whose own checksum, `data.md5`, stands for those of its files.
    """
    from torchvision.datasets import CIFAR10, CIFAR100  # late: it takes a second

    dataset: Any = CIFAR10 if config.source == "cifar10" else CIFAR100
    root = Path(config.root)
    folder = root / dataset.base_folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f".{config.source}.lock", f"downloading {config.source} into {root}"):
            if not folder.is_dir():
                _download(dataset, root, config)
        parts = dataset.train_list if split == "train" else dataset.test_list
        checked = config.md5 is None
        batches = [_read(folder / name, md5 if checked else None) for name, md5 in parts]
        meta = _read(folder / dataset.meta["filename"], dataset.meta["md5"] if checked else None)
        images = np.concatenate([_images(batch["data"]) for batch in batches])
        key = "labels" if "labels" in batches[0] else "fine_labels"
        labels = np.concatenate([np.asarray(batch[key], np.int64) for batch in batches])
        classes = tuple(str(name) for name in meta[dataset.meta["key"]])
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
    return images, labels, classes


def _files(dataset: Any) -> list[str]:
    return [name for name, _ in (*dataset.train_list, *dataset.test_list)] + [dataset.meta["filename"]]


def _read(path: Path, md5: str | None) -> dict[str, Any]:
    from torchvision.datasets.utils import check_integrity

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


def _download(dataset: Any, root: Path, config: DataConfig) -> None:
    """Fetch, verify and unpack into a folder aside, then rename it into place: it is whole or absent."""
    from torchvision.datasets.utils import check_integrity

    source, url, md5 = config.source, config.url or dataset.url, config.md5 or dataset.tgz_md5
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
