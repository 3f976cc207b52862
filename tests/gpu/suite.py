"""The frame of the four commands of `make gpu`: named checks, each in a process of its own, one line each at its end.

A check is a function of a Place that returns what it found, raises Skip for what it lacks, and anything else where it
found something else than expected. It runs in a fork of this process, which has imported torch but never touched the
GPU: so it costs no second import, has a CUDA context of its own, and can be killed with all that it has started.

Each result is written at once, as a line of JSON, so that a command that is cut short has told what it found until then.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from tests.gpu.images import unpack

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "gpu"
STATUSES = ("ok", "FAIL", "skip", "not run")
_TOY_S = 120  # the limit of a check of toy size: the machine may be busy


class Skip(Exception):  # noqa: N818 - it is no error
    """The check needs something that is not here."""


class Wrong(Exception):  # noqa: N818 - a finding
    """Something else was found than expected."""


@dataclass(frozen=True)
class Place:
    """What a check runs on, and in."""

    home: Path  # a folder of its own
    device: str  # cuda or cpu
    toy: bool
    data: Path | None  # an image folder with train/<class>/ and test/<class>/
    extra: Mapping[str, Path]  # files that were brought along: "nccl", "airbench"
    note: Callable[..., None] = field(default=lambda **_: None)  # numbers to be kept even if the check is cut

    @property
    def cuda(self) -> bool:
        """Whether there is a real device, to be asked for what only that has."""
        return self.device == "cuda"

    def of(self, full: Any, toy: Any) -> Any:
        """A size."""
        return toy if self.toy else full

    def needs_cuda(self) -> None:
        """Raises Skip on the CPU."""
        if not self.cuda:
            raise Skip("needs CUDA")

    def needs_data(self) -> Path:
        """The image folder. Raises Skip where none was given."""
        if self.data is None:
            raise Skip("no data")
        return self.data


def expect(truth: object, found: str) -> None:
    """Raises Wrong with what was found instead."""
    if not truth:
        raise Wrong(found)


@dataclass(frozen=True)
class Check:
    """One row of a table."""

    name: str
    what: str
    expected: str
    about_s: float  # on a GPU, an estimate; it may take three times as long, and a minute at least
    run: Callable[[Place], str]
    first: bool = False  # one of those for which there is always time


def in_order(checks: Iterable[Check]) -> list[Check]:
    """By letter and number: T2 before T10."""
    return sorted(checks, key=lambda check: (check.name[0], int(check.name[1:])))


@dataclass
class Suite:
    """One command."""

    name: str
    title: str
    checks: list[Check] = field(default_factory=list)

    def check(
        self, name: str, what: str, expected: str, about_s: float, *, first: bool = False
    ) -> Callable[[Callable[[Place], str]], Callable[[Place], str]]:
        """Make a check of the function."""

        def add(run: Callable[[Place], str]) -> Callable[[Place], str]:
            self.checks.append(Check(name, what, expected, about_s, run, first))
            return run

        return add

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run the checks that are asked for; 1 if any has failed, 2 without a GPU."""
        options = self._parser().parse_args(arguments)
        names = (
            options.only.split(",") if options.only else [c.name for c in self.checks if c.first or not options.first]
        )
        if unknown := set(names) - {check.name for check in self.checks}:
            print(f"{self.name}: no check {', '.join(sorted(unknown))}", file=sys.stderr)
            return 2
        deadline = time.monotonic() + 60 * options.minutes
        machine = _forked(_machine, 120)
        if options.device == "cuda" and not machine.get("gpu"):
            print(f"{self.name}: no CUDA device is visible here; --device cpu --toy tries the checks themselves",
                  file=sys.stderr)  # fmt: skip
            return 2
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"{self.name}.jsonl"
        machine["gpu"] = machine.get("gpu", "") if options.device == "cuda" else ""
        own = {"toy": options.toy, "device": options.device, "command": shlex.join(["python", "-m", *_invoked()])}
        _append(path, {"kind": "machine", **machine, **own})
        print(f"{self.title}: {machine['gpu'] or 'CPU'}, torch {machine.get('torch')}", flush=True)
        counts = dict.fromkeys(STATUSES, 0)
        with tempfile.TemporaryDirectory(prefix="distcnn-gpu-") as folder:
            home = Path(folder)
            os.environ["DISTCNN_CACHE"] = str(home / "cache")
            data = unpack(options.data, home / "images") if options.data else None
            extra = {key: file for key in ("nccl", "airbench") if (file := getattr(options, key)) is not None}
            chosen = in_order(check for check in self.checks if check.name in names)
            for check in sorted(chosen, key=lambda check: not check.first):  # what matters most comes first
                place = Place(home / check.name, options.device, options.toy, data, extra)
                found = _run(check, place, deadline - time.monotonic())
                counts[found["status"]] += 1
                _append(path, {"kind": "check", "name": check.name, **found})
                print(_line(check, found), flush=True)
                shutil.rmtree(place.home, ignore_errors=True)
        print(", ".join(f"{count} {status}" for status, count in counts.items()), flush=True)
        return 1 if counts["FAIL"] else 0

    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(prog=f"python -m {_invoked()[0]}", description=self.title)
        add = parser.add_argument
        add("--device", choices=("cuda", "cpu"), default="cuda")
        add("--toy", action="store_true", help="toy sizes: tries the checks, measures nothing")
        add("--only", metavar="NAME,NAME", help="these checks: " + ", ".join(check.name for check in self.checks))
        add("--first", action="store_true", help="those that matter most")
        add("--minutes", type=float, default=9, help="what does not fit any more is not run; default: 9")
        add(
            "--out", type=_absolute, default=RESULTS, metavar="DIR", help="results are appended here; default: docs/gpu"
        )
        add("--data", type=_there, metavar="PATH", help="CIFAR-10 as an image folder, or packed by tests.gpu.images")
        add("--nccl", type=_there, metavar="FILE", help="a libnccl.so.2 of 2.30 or later in the place of PyTorch's own")
        add("--airbench", type=_there, metavar="FILE", help="airbench94_muon.py, to be timed beside distcnn")
        return parser


def _absolute(text: str) -> Path:
    return Path(text).resolve()  # a check runs in a folder of its own


def _there(text: str) -> Path:
    path = _absolute(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"there is no {path}")
    return path


def _invoked() -> list[str]:
    path = Path(sys.argv[0]).resolve()
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts) if path.is_relative_to(ROOT) else path.name
    return [name.removesuffix(".__main__"), *sys.argv[1:]]


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _line(check: Check, found: dict[str, Any]) -> str:
    value = found["value"].splitlines()[0] if found["value"] else ""
    text = f"{check.name:<4} {found['status']:<7} {value}  (expected: {check.expected})  {found['seconds']:.0f} s"
    return text + "".join(f"\n       {line}" for line in found.get("tail", "").splitlines()[-12:])


def _run(check: Check, place: Place, left_s: float) -> dict[str, Any]:
    """One check in a fork: status, value, seconds, the numbers it has noted, and the end of its output if it failed."""
    limit = _TOY_S if place.toy else max(60.0, 3 * check.about_s)
    if left_s < (5 if place.toy else check.about_s):
        return {"status": "not run", "value": f"{max(left_s, 0):.0f} s were left", "seconds": 0.0}
    place.home.mkdir(parents=True)
    log = place.home.with_suffix(".log")
    begun = time.monotonic()
    status, value, numbers = _watched(check, place, log, min(limit, left_s))
    if status == "cut":
        full = left_s > limit
        status, value = ("FAIL", f"still ran after {limit:.0f} s") if full else ("not run", "cut: no time was left")
    found: dict[str, Any] = {"status": status, "value": value, "seconds": round(time.monotonic() - begun, 1)}
    if numbers:
        found["numbers"] = numbers
    if status in ("FAIL", "not run") and log.exists():
        found["tail"] = log.read_text(errors="replace")[-3000:]
    return found


def _watched(check: Check, place: Place, log: Path, limit_s: float) -> tuple[str, str, dict[str, Any]]:
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_child, args=(check, place, log, theirs))
    process.start()
    theirs.close()
    numbers: dict[str, Any] = {}
    end = time.monotonic() + limit_s
    try:
        while ours.poll(max(0.0, end - time.monotonic())):
            kind, content = ours.recv()
            if kind == "note":
                numbers |= content
                continue
            return (*content, numbers)
        return "cut", "", numbers
    except EOFError:
        process.join(10)
        return "FAIL", f"its process ended with {process.exitcode}", numbers
    finally:
        _end(process.pid)
        process.join()
        process.close()
        ours.close()


def _child(check: Check, place: Place, log: Path, told: Connection) -> None:
    os.setsid()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(place.home)
    known = Place(place.home, place.device, place.toy, place.data, place.extra, lambda **n: told.send(("note", n)))
    try:
        result = "ok", check.run(known)
    except Skip as reason:
        result = "skip", str(reason)
    except Wrong as found:
        result = "FAIL", str(found)
    except BaseException as error:
        traceback.print_exc()
        result = "FAIL", f"{type(error).__name__}: {error}"
    sys.stdout.flush()
    sys.stderr.flush()
    told.send(("end", result))
    os._exit(0)  # a CUDA context, threads, a group: nothing of it is anyone's concern any more


def _end(pid: int | None) -> None:
    """Kill a process and all that it has started."""
    try:
        root = psutil.Process(pid)
        family = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


def _forked(call: Callable[[], dict[str, Any]], limit_s: float) -> dict[str, Any]:
    """What `call` returns in a fork, so that this process does not touch the GPU; nothing if it hangs or dies."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)

    def run() -> None:
        theirs.send(call())
        os._exit(0)

    process = fork.Process(target=run)
    process.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(limit_s) else {}
    except EOFError:
        return {}
    finally:
        _end(process.pid)
        process.join()


def _machine() -> dict[str, Any]:
    import torch
    import torchvision

    from distcnn.distributed.device import nccl_version

    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"), "python": platform.python_version(), "torch": torch.__version__,
        "torchvision": torchvision.__version__, "cuda": torch.version.cuda, "cores": os.cpu_count(),
    }  # fmt: skip
    if torch.cuda.is_available():
        found |= {
            "gpu": torch.cuda.get_device_name(0), "gpus": torch.cuda.device_count(),
            "memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
            "nccl": ".".join(map(str, nccl_version() or ("none",))), "cudnn": torch.backends.cudnn.version(),
        }  # fmt: skip
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60)
        found["driver"] = done.stdout.strip().partition("\n")[0]
    return found
