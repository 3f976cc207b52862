"""What the checks share: settings, runs in processes of their own, and what two runs have in common."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.gpu.suite import ROOT, Place, Skip, Wrong
from tests.ranks import Outcome, Ranks, clean_environment, free_port, start
from tests.records import losses, metrics, weights

Settings = dict[str, Any]
OWN_NETS = ("simple_cnn", "compact_cnn", "resnet9", "resnet18", "whitened_cnn")
MULTI_RANK = {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_NVLS_ENABLE": "0"}
# A rate at which losses stay near to each other. On a CPU T7's are within 3e-6 at this one; at 0.02 they are 3e-2 apart after 50
# steps: a ReLU or a max-pool near a tie makes much of a last bit, and the faster the weights move the sooner.
SLOW = 0.002
READING = {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "_unique2", "unique_dim"}


def base(place: Place, **dotted: Any) -> Settings:
    """Of a run on made-up images, and of the given keys, written `train__precision`."""
    size = place.of(32, 16)
    settings = {
        "output_dir": str(place.home / "runs"), "data.source": "synthetic", "data.image_size": size,
        "data.args.train": place.of(4096, 200), "data.args.test": place.of(500, 60),
        "data.augment": [{"crop": {"padding": place.of(4, 2)}}, "flip"], "optim.lr": 0.02, "train.device": place.device,
        "train.duration": place.of("60step", "6step"), "train.batch_size": place.of(256, 40),
        "train.micro_batch": place.of(64, 10), "train.threads": place.of(4, 1), "eval.every": "1000ep",
        "checkpoint.every": "1000ep", "tracking.console": False, "tracking.report": False, "tracking.wandb": "disabled",
    }  # fmt: skip
    return settings | {key.replace("__", "."): value for key, value in dotted.items()}


def of_data(place: Place, settings: Settings) -> Settings:
    """The same settings on the real images. Raises Skip where none were given."""
    kept = {key: value for key, value in settings.items() if not key.startswith("data.args")}
    size = place.of(32, 16)
    return kept | {"data.source": "folder", "data.root": str(place.needs_data()), "data.image_size": size}


def words(settings: Mapping[str, Any]) -> list[str]:
    """As the command line takes them."""
    return [f"--{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in settings.items()]


def config(place: Place, settings: Mapping[str, Any], name: str = "run") -> list[str]:
    """`train CONFIG.yaml --key value …` for the settings."""
    file = place.home / f"{name}.yaml"
    file.write_text("{}\n", encoding="utf-8")
    return ["train", str(file), "--name", name, *words(settings)]


def environment(place: Place, *, shared: bool = False, **more: str) -> dict[str, str]:
    """Of a process: the project to be imported, and for ranks that share a GPU what NCCL needs for it."""
    found = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])} | more
    if shared and place.cuda:
        found |= MULTI_RANK
        if "nccl" in place.extra:
            found["LD_PRELOAD"] = str(place.extra["nccl"])
    return found


def command(place: Place, *arguments: str, program: Sequence[str] = ("-m", "distcnn"), **more: str) -> Outcome:
    """One process to its end."""
    with start(arguments, program=program, cwd=place.home, **environment(place, **more)) as ranks:
        return ranks.outcome(timeout=3600)


def good(outcome: Outcome, what: str = "it") -> Outcome:
    """The outcome, if all ended with 0."""
    if set(outcome.codes) != {0}:
        lines = (outcome.err.strip() or outcome.out.strip()).splitlines()[-3:]
        raise Wrong(f"{what} ended with {outcome.codes}: {' | '.join(lines)}")
    return outcome


@contextmanager
def trainings(
    place: Place, jobs: Mapping[str, Settings], ranks: int = 1, group: Mapping[str, str] | None = None, **more: str
) -> Iterator[Ranks]:
    """The jobs, one after another, in one process a rank; each run has the name of its job.

    `group` names those that are to train in a real group of one rank, and its backend.
    """
    groups = group or {}
    known = [
        {"settings": settings | {"name": name}, "group": groups.get(name, ""), "port": free_port()}
        for name, settings in jobs.items()
    ]
    file = place.home / f"{next(iter(jobs))}-{ranks}-jobs.json"
    file.write_text(json.dumps(known), encoding="utf-8")
    shared = environment(place, shared=ranks > 1 or bool(groups), **more)
    with start([file], ranks, ("-m", "tests.gpu.trainings"), place.home, **shared) as started:
        yield started


def train(
    place: Place, jobs: Mapping[str, Settings], ranks: int = 1, group: Mapping[str, str] | None = None, **more: str
) -> list[dict[str, Any]]:
    """Train them to the end; what each has printed on rank 0."""
    with trainings(place, jobs, ranks, group, **more) as started:
        good(started.outcome(timeout=3600), f"training on {ranks} ranks")
        return [json.loads(line) for line in started.out(0).splitlines() if line.startswith("{")]


def train_beside(place: Place, *batches: Mapping[str, Settings]) -> None:
    """Several processes at once, each with its jobs."""
    with ExitStack() as held:
        all_started = [held.enter_context(trainings(place, jobs)) for jobs in batches]
        for started in all_started:
            good(started.outcome(timeout=3600), "a training")


def runs(place: Place) -> Path:
    """Where the runs of `base` lie."""
    return place.home / "runs"


def same(first: Path, second: Path, *, weights_too: bool = True) -> bool:
    """Whether two runs have the same losses and evaluations, and weights, to the bit."""
    return losses(first) == losses(second) and (not weights_too or weights(first) == weights(second))


def step_losses(folder: Path) -> list[float]:
    """Of each step."""
    return [line["loss"] for line in metrics(folder, "train")]


def apart(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Relative differences, step by step."""
    return [abs(a - b) / max(abs(b), 1e-9) for a, b in zip(first, second, strict=True)]


def rate(folder: Path) -> float:
    """Images/s, the median of the log points but the first."""
    found = [line["images_per_s"] for line in metrics(folder, "train")]
    return statistics.median(found[len(found) // 3 :])


class NoReads(TorchDispatchMode):
    """On the CPU, in the place of CUDA's own mode: an operation whose result the host needs raises."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in READING:
            raise Wrong(f"reads the device: {func}")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host_sync(place: Place) -> Iterator[None]:
    """Whatever makes the host wait for the device raises."""
    if not place.cuda:
        with NoReads():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def ended_s(started: Mapping[str, tuple[Ranks, Path]], limit_s: float) -> dict[str, float]:
    """Seconds from each fault, whose time is in its file, to the end of rank 0: all are looked at, again and again."""
    found: dict[str, float] = {}
    end = time.monotonic() + limit_s
    while len(found) < len(started):
        for name in started.keys() - found.keys():
            ranks, mark = started[name]
            if ranks[0].poll() is not None:
                if not mark.exists():
                    raise Wrong(f"{name}: rank 0 has ended before the fault: {ranks.err(0).strip().splitlines()[-1:]}")
                found[name] = time.time() - float(mark.read_text(encoding="ascii"))
        if time.monotonic() > end:
            raise Wrong(f"{', '.join(started.keys() - found.keys())}: rank 0 still ran after {limit_s:.0f} s")
        time.sleep(0.01)
    return found


def nccl_version(place: Place) -> tuple[int, ...]:
    """Of the library that ranks which share a GPU are given."""
    code = "from distcnn.distributed.device import nccl_version; print(*nccl_version() or ())"
    known = clean_environment() | environment(place, shared=True)
    done = subprocess.run([sys.executable, "-c", code], env=known, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Wrong(f"NCCL's version: {done.stderr.strip().splitlines()[-1:]}")
    return tuple(map(int, done.stdout.split()))


def needs_shared_gpu(place: Place) -> None:
    """Raises Skip where NCCL cannot have two ranks on one GPU; several GPUs would do as well, but are not looked for."""
    if not place.cuda:
        return
    version = nccl_version(place)
    place.note(nccl=".".join(map(str, version)))
    if version < (2, 30):
        raise Skip(f"NCCL {'.'.join(map(str, version))} has no two ranks on one GPU; give --nccl a 2.30 or later")
