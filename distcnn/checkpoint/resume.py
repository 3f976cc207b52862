"""The folder of a run: making it, finding where a run stopped, and the final weights."""

import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError
from torch import nn
from typing_extensions import TypedDict

from distcnn.checkpoint.file import Checkpoints, load
from distcnn.checkpoint.state import TrainState
from distcnn.config.keys import MAPPINGS, SECTIONS
from distcnn.config.plan import Plan
from distcnn.config.schema import Config
from distcnn.config.settings import to_dict
from distcnn.data.normalize import Normalize
from distcnn.errors import InputError
from distcnn.files import waiting, whole_file

# A position in an epoch means something else when one of these has changed.
POSITION = ("train_images", "batch_size", "steps_per_epoch")
BOUND = ("seed", "model.name", "optim.name", "train.batch_size")  # never changed in a run: what is saved would not fit
# Where files lie, what is reported, how long it goes on, and on what it runs.
HARMLESS = (
    "name", "output_dir", "engine", "eval", "checkpoint", "tracking", "data.root", "data.args.url", "data.args.md5",
    "data.cache_dir", "data.loader", "data.workers", "model.compile", "train.duration", "train.micro_batch",
    "train.device", "train.backend", "train.deterministic", "train.threads", "train.timeout",
)  # fmt: skip


def make_folder(config: Config, held: ExitStack) -> Path:
    """Make the run's folder: the named one to continue it, otherwise the first of name, name-2, … that is free.

    It is locked until `held` is closed, or the process has ended. Raises InputError where another process trains in it.
    """
    try:
        folder = _make(config)
        held.enter_context(_locked(folder))
    except OSError as error:
        problem = f"output_dir = {config.output_dir}: {error.strerror}; give a folder that can be written"
        raise InputError(problem) from error
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. A killed process has let it go at once; on a network file system it can take a minute."""
    lock, owner = FileLock(folder / ".lock"), folder / ".owner"
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
            f"output_dir, name: {folder} is being trained in by {other}; wait for its end, or give --name"
        ) from None
    try:
        with suppress(OSError):  # a full disk
            owner.write_text(me, encoding="utf-8")
        yield
    finally:
        lock.release()


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


def run_id(folder: Path) -> str:
    """The run's id for trackers: made at its first start, and the same at every later one."""
    path = folder / "run_id"
    if not path.exists():
        with whole_file(path) as partial:
            partial.write_text(secrets.token_hex(4) + "\n", encoding="ascii")
    return path.read_text(encoding="ascii").strip()


def unwritable(folder: Path) -> str | None:
    """Why a folder cannot be made or written to; None if it can. Changes nothing."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        return f"{existing} is not a folder; give a folder that can be written"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{existing} cannot be written; give a folder that can"
    return None


class Saved(TypedDict):
    """What a checkpoint of a run holds: all that it takes to use or to continue it."""

    model: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    averages: dict[str, list[Any]]
    config: dict[str, Any]
    plan: Plan
    classes: list[str]
    image_size: int
    normalize: Normalize
    state: TrainState


def load_run(path: Path) -> dict[str, Any]:
    """A run's checkpoint, as plain values. Raises InputError where something is missing or is not what it should be."""
    saved = load(path)
    try:
        _SAVED.validate_python(saved)
    except ValidationError as error:
        raise InputError(f"{path}: not a checkpoint of a run: {_first(error)}") from error
    return saved


def find_resumed(config: Config, plan: Plan, model: nn.Module) -> tuple[dict[str, Any] | None, list[Path]]:
    """The checkpoint to go on from, checked against this run, or None to start anew; and damaged newer ones."""
    resume = config.checkpoint.resume
    if resume == "never":
        return None, []
    path, damaged = Path(resume), list[Path]()
    if resume == "auto":
        found, damaged = Checkpoints(Path(config.output_dir) / (config.name or "run") / "checkpoints").newest_whole()
        if found is None:
            return None, damaged
        path = found
    saved = load_run(path)
    load_weights(model, saved, path)
    before, now = saved["plan"], asdict(plan)
    changed = [(key, before[key], now[key]) for key in POSITION if before[key] != now[key]]
    bound, allowed = bool(changed), {*HARMLESS, *config.checkpoint.allow_changes}
    for key, was, value in differences(saved["config"], to_dict(config)):
        if key in BOUND or not {key, key.rpartition(".")[0], key.split(".")[0]} & allowed:
            changed.append((key, was, value))
            bound |= key in BOUND
    if changed:
        cure = "" if bound else ", or allow the change by --checkpoint.allow_changes '[KEY, …]' if it is meant"
        raise InputError(
            f"checkpoint.resume: {path} was trained otherwise: "
            + "; ".join(f"{key} was {was}, is {value}" for key, was, value in changed)
            + f"; start a run of another name{cure}"
        )
    return saved, damaged


def differences(before: dict[str, Any], now: dict[str, Any], inside: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of each setting that is not the same."""
    for leaf in [*now, *(before.keys() - now.keys() if inside in MAPPINGS else ())]:
        key, was, value = f"{inside}.{leaf}".lstrip("."), before.get(leaf), now.get(leaf)
        if isinstance(value, dict) and key in (*SECTIONS, *MAPPINGS):
            yield from differences(was or {}, value, key)
        elif was != value:
            yield key, was, value


def load_weights(model: nn.Module, saved: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's weights into the model. Raises InputError where they do not fit."""
    try:
        model.load_state_dict(saved["model"])
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise InputError(f"model: the weights in {path} are those of another network: {first}") from error


def save_weights(path: Path, model: nn.Module, described: dict[str, Any]) -> None:
    """The final weights as safetensors, with what one needs to use them in its metadata. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    config = described["config"]
    metadata = {
        "model": config["model"],
        "precision": config["train"]["precision"],
        "views": config["eval"]["views"],
        **{key: described[key] for key in ("classes", "image_size", "normalize", "step", "epoch")},
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with whole_file(path) as partial:
        try:
            save_file(tensors, partial, {"distcnn": json.dumps(metadata)})  # one key: several come in random order
        except SafetensorError as error:  # its own name for a full disk
            raise OSError(str(error)) from error


class Exported(TypedDict):
    """What stands in the metadata of a model.safetensors: no paths, nothing of where it was trained."""

    model: dict[str, Any]
    precision: str
    views: str
    classes: list[str]
    image_size: int
    normalize: Normalize
    step: int
    epoch: int


def load_exported(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights of a model.safetensors, and what its metadata says. Raises InputError."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("distcnn")
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not readable as safetensors: {error}") from error
    if text is None:
        raise InputError(f"{path}: holds weights only; distcnn's own model.safetensors says how to use them")
    try:
        _EXPORTED.validate_json(text)
    except ValidationError as error:
        raise InputError(f"{path}: {_first(error)}") from error
    return weights, json.loads(text)


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


_SAVED = TypeAdapter(Saved)
_EXPORTED = TypeAdapter(Exported)
