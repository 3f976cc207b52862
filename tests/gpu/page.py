"""docs/gpu/*.jsonl → docs/gpu.md: python -m tests.gpu.page [DIR]

The lines of DIR, brought from elsewhere, are added to those of docs/gpu first. Of each check the newest result that was found on a GPU at full size; "not run yet" where there is none.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu import __main__ as _speed  # noqa: F401 - it fills its table
from tests.gpu import correct as _correct  # noqa: F401
from tests.gpu import more as _more  # noqa: F401
from tests.gpu import ranks as _ranks  # noqa: F401
from tests.gpu.suite import RESULTS, ROOT, Suite, in_order
from tests.gpu.suites import CORRECT, MORE, RANKS, SPEED

PAGE = ROOT / "docs" / "gpu.md"
MODULES = {
    "correct": "tests.gpu.correct",
    "more": "tests.gpu.more",
    "ranks": "tests.gpu.ranks",
    "speed": "benchmarks.gpu",
}
SUITES = (CORRECT, RANKS, SPEED, MORE)
HEAD = """# On a GPU

What only a machine with an NVIDIA GPU can answer, in four commands of at most nine minutes each. `make gpu` runs them
all; `make gpu FIRST=1` runs the {first} checks that matter most: {names}.

Each check has a number from elsewhere to be held against: the same run on a CPU, a run that nobody disturbed, an estimate made before (then it says so). A line is written to
`docs/gpu/` as soon as a check has ended, and `python -m tests.gpu.page` makes this page of them.

It takes one NVIDIA GPU, Python 3.12, PyTorch 2.11 or later, and no internet. What distcnn needs beside PyTorch, torchvision and
NumPy can be brought as wheels, fetched where there is internet; so can the images of CIFAR-10, packed into one file (without
them the checks that need them are skipped, and say so):

<!-- needs a GPU -->
```text
pip download --only-binary=:all: --python-version 3.12 --no-deps -d wheels pydantic pydantic-core annotated-types \\
    typing-inspection typing-extensions filelock psutil pyyaml rich markdown-it-py mdurl pygments safetensors pillow \\
    scikit-learn scipy joblib threadpoolctl accelerate pytest pytest-xdist execnet iniconfig pluggy packaging \\
    hypothesis sortedcontainers
python -m tests.gpu.images DIR cifar10.npz       # DIR: train/<class>/*.jpg and test/<class>/*.jpg

pip install --no-index --find-links wheels --no-deps wheels/*.whl
make gpu DATA=cifar10.npz                        # OUT=DIR: where the results go, else docs/gpu
python -m tests.gpu.correct --only T3,T4         # one part of it
python -m tests.gpu.correct --device cpu --toy   # without a GPU: tries the checks, and measures nothing
```

The commands can also be run one by one, on other days or machines: each adds its lines to `--out DIR`. Carried back, they are
added to `docs/gpu/`, and this page is made, by `python -m tests.gpu.page DIR`.

Two ranks on one GPU need NCCL 2.30 or later. PyTorch's own is taken unless `make gpu NCCL=…/libnccl.so.2` names another, which
is then preloaded. With an older one these checks are skipped, and say which it is. Two processes take turns on the GPU, so what
they find is right or wrong, never fast or slow. `AIRBENCH=…/airbench94_muon.py` is timed beside distcnn's speed-runs.
"""


def results(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """By check the newest result at full size on a GPU, and the machine it was found on."""
    found: dict[str, dict[str, Any]] = {}
    machines: dict[str, dict[str, Any]] = {}
    machine: dict[str, Any] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else []):
        line = json.loads(text)
        if line["kind"] == "machine":
            machine = line | {"line": number}
        elif (
            machine.get("gpu") and not machine.get("toy") and (line["status"] != "not run" or line["name"] not in found)
        ):
            found[line["name"]], machines[line["name"]] = line, machine
    return found, machines


def described(machine: Mapping[str, Any]) -> str:
    """On what it was found, in a line."""
    parts = [f"{machine['gpu']} ({machine.get('memory_gib', '?')} GiB)"]
    parts += [f"{name} {machine[key]}" for key, name in (
        ("driver", "driver"), ("torch", "PyTorch"), ("cuda", "CUDA"), ("nccl", "NCCL"), ("cudnn", "cuDNN"),
        ("python", "Python"), ("cores", "cores:"), ("date", "on")) if machine.get(key)]  # fmt: skip
    return f"{', '.join(parts)}: `{machine['command']}`"


def cell(text: str) -> str:
    """As it can stand in a table."""
    first = text.splitlines()[0] if text else ""
    return first.replace("|", "\\|")


def section(suite: Suite, path: Path) -> Iterator[str]:
    """One command's table."""
    found, machines = results(path)
    known = sorted(
        {id(machine): machine for machine in machines.values()}.values(), key=lambda machine: machine["line"]
    )
    yield f"\n## {suite.title}\n"
    yield f"`python -m {MODULES[suite.name]}`\n"
    if not known:
        yield "Not run yet.\n"
    for number, machine in enumerate(known, 1):
        yield f"{number}. {described(machine)}\n"
    yield "| | what | expected | found | s |\n| --- | --- | --- | --- | ---: |"
    for check in in_order(suite.checks):
        one = found.get(check.name)
        told, seconds = "not run yet", ""
        if one is not None:
            on = f" ({known.index(machines[check.name]) + 1})" if len(known) > 1 else ""
            told, seconds = f"{one['status']}: {cell(one['value'])}{on}", f"{one['seconds']:.0f}"
        yield f"| {check.name} | {cell(check.what)} | {cell(check.expected)} | {told} | {seconds} |"


def text(folder: Path = RESULTS) -> str:
    """The page of the results in a folder."""
    first = [check.name for suite in SUITES for check in in_order(suite.checks) if check.first]
    lines = [HEAD.format(first=len(first), names=", ".join(first))]
    for suite in SUITES:
        lines += section(suite, folder / f"{suite.name}.jsonl")
    return "\n".join(lines).rstrip() + "\n"


def add(brought: Path, folder: Path = RESULTS) -> None:
    """Add the calls whose lines are in a folder to the results, each of them once."""
    for suite in SUITES:
        source, own = brought / f"{suite.name}.jsonl", folder / f"{suite.name}.jsonl"
        known = own.read_text(encoding="utf-8") if own.exists() else ""
        calls: list[str] = []
        for line in source.read_text(encoding="utf-8").splitlines(keepends=True) if source.exists() else []:
            if json.loads(line)["kind"] == "machine":
                calls.append("")
            calls[-1] += line
        folder.mkdir(parents=True, exist_ok=True)
        if new := [call for call in calls if call not in known]:
            own.write_text(known + "".join(new), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.page", description="docs/gpu/*.jsonl to docs/gpu.md")
    parser.add_argument("brought", type=Path, nargs="?", metavar="DIR", help="results to be added first")
    if (chosen := parser.parse_args().brought) is not None:
        if not [*chosen.glob("*.jsonl")]:
            parser.error(f"there are no *.jsonl in {chosen}")
        add(chosen)
    PAGE.write_text(text(), encoding="utf-8")
    print(PAGE, file=sys.stderr)
