"""Trials: each a process of its own in a clean environment, in turn (A B C A B C …), and what they add up to."""

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

THREADS = 2
RESULTS = Path(__file__).parents[1] / "docs" / "results.json"

# All that a trial sees of the environment: frameworks look for a cluster in SLURM_* and the like.
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH", "DISTCNN_CACHE")
_PACKAGES = ("torch", "torchvision", "lightning", "accelerate", "timm", "distcnn")


def environment() -> dict[str, str]:
    """Of a trial: no launcher's variables, no GPU, the same number of threads for all."""
    kept = {key: os.environ[key] for key in _KEPT if key in os.environ}
    return kept | {"OMP_NUM_THREADS": f"{THREADS}", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}


def run(*arguments: object) -> dict[str, Any]:
    """Run `python ARGUMENTS`: the JSON object in its last line, with its start (monotonic clock) and its wall time."""
    command = [sys.executable, *map(str, arguments)]
    started = time.monotonic()
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    wall_s = time.monotonic() - started
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-3000:]}"
        )
    last = done.stdout.strip().splitlines()[-1:]
    found = json.loads(last[0]) if last and last[0].startswith("{") else {}
    return {**found, "started": started, "wall_s": wall_s}


def interleave(trials: Mapping[str, Sequence[object]], n: int) -> dict[str, list[dict[str, Any]]]:
    """Every trial once, then all of them again, n times: what changes on a shared machine meets all alike."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in trials}
    for i in range(n):
        for name, arguments in trials.items():
            result = run(*arguments)
            results[name].append(result)
            shown = ", ".join(f"{key} {value:,.4g}" for key, value in result.items() if key != "started")
            print(f"  {i + 1}/{n} {name}: {shown}", flush=True)
    return results


def column(results: Mapping[str, list[dict[str, Any]]], key: str, digits: int = 1) -> dict[str, list[float]]:
    """One number of each result, rounded for the file of results."""
    return {name: [round(result[key], digits) for result in runs] for name, runs in results.items()}


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Median, smallest and largest."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Of the trials of the same round: what slowed down a whole round cancels out."""
    return [a / b for a, b in zip(above, below, strict=True)]


def machine() -> str:
    """What it ran on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    bf16 = [name for name in ("avx512_bf16", "amx_bf16") if name in flags]
    cpu = names[0] if names else platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {cpu} ({', '.join(bf16) or 'no bf16 instructions'}), no GPU used"


def versions() -> str:
    """Of Python and of the packages compared."""
    found = [f"Python {platform.python_version()}"]
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def keep(path: Path, section: str, part: str, found: Mapping[str, Any], root: str) -> None:
    """Write one part of the file of results, with how it was made; the other parts stay, each with its own."""
    results = json.loads(path.read_text()) if path.exists() else {}
    arguments = ["DIR" if argument == root else argument for argument in sys.argv[1:]]
    made = {
        "command": shlex.join(["python", "-m", f"benchmarks.{section}", *arguments]),
        "threads": THREADS, "machine": machine(), "versions": versions(), "load_at_end": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    results.setdefault(section, {})[part] = {**found, "made": made}
    path.write_text(json.dumps(results, indent=1) + "\n")
