"""How every command ends on several ranks, hundreds of times: `make ends`.

Each end is that of a real process: the ranks are forked from one that has imported PyTorch already, which saves ten
seconds a process, and end as `python -m distcnn …` does, or as the interpreter does for a Python program. Beside them
`--busy` processes keep the cores at work, which gives gloo's threads time to be late.
"""

import argparse
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from PIL import Image

import distcnn
from distcnn.cli import program
from tests.ranks import bare

LIMIT_S = 300  # of one end: what takes longer hangs

CONFIG = """
output_dir: {folder}/runs
data: {{source: synthetic, args: {{train: 48, test: 20}}, image_size: 16}}
optim: {{name: sgd, lr: 0.02}}
model: {{name: resnet9, args: {{width: 4}}}}
train: {{duration: 2step, batch_size: 24, micro_batch: 4, threads: 1}}
tracking: {{wandb: disabled, report: false}}
"""


def command(*words: str) -> Callable[[], object]:
    """`distcnn WORDS`, from which a rank does not come back."""

    def rank() -> None:
        sys.argv = ["distcnn", *words]
        program()

    return rank


def commands(folder: Path) -> dict[str, Callable[[], object]]:
    """What a rank runs, by name: all that several ranks run together."""
    config, made = f"{folder}/tiny.yaml", f"{folder}/runs/made"

    def python_program() -> None:
        distcnn.train(config, {"tracking.console": False})
        distcnn.evaluate(made)
        sys.exit(3)

    return {
        "train": command("train", config),
        "evaluate": command("evaluate", made),
        "predict": command("predict", made, f"{folder}/photos"),
        "bench": command("bench", "step", config, "--steps", "1", "--warmup", "0"),
        "doctor": command("doctor"),
        "a Python program": python_program,
    }


def end(ranks: int, work: Callable[[], object], log: Path) -> list[int]:
    """Fork the ranks; returns how each ended: its exit code, or minus the signal's number."""
    children = []
    for own in bare(ranks):
        if child := os.fork():
            children.append(child)
            continue
        os.environ |= own
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        work()  # does not come back, but by SystemExit
        os._exit(99)
    deadline = time.monotonic() + LIMIT_S
    return [ended(child, deadline) for child in children]


def ended(child: int, deadline: float) -> int:
    """The exit code of a process, or minus the number of the signal that ended it; of one that hangs, SIGKILL's."""
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> int:
    """End each command so often; 1 if any end was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", metavar="COMMAND", nargs="*", help="only these")
    parser.add_argument("--n", type=int, default=200, help="ends of each command")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--busy", type=int, default=os.cpu_count(), help="processes that keep a core at work")
    options = parser.parse_args()
    # No context manager: a forked rank that ends by SystemExit comes through here.
    folder = Path(mkdtemp())
    prepare(folder)
    others = [busy() for _ in range(options.busy)]
    known, log, failed = commands(folder), folder / "log", False
    for name in options.names or known:
        wanted = 3 if name == "a Python program" else 0
        begun, codes = time.monotonic(), Counter[int]()
        for _ in range(options.n):
            codes.update(end(options.ranks, known[name], log))
        bad = {code: n for code, n in codes.items() if code != wanted}
        failed |= bool(bad)
        said = f"{bad} (code: ranks) otherwise" if bad else "none otherwise"
        took = f"{time.monotonic() - begun:.0f} s"
        print(f"{name}: {options.n} × {options.ranks} ranks, {codes[wanted]} with exit code {wanted}, {said}; {took}", flush=True)  # fmt: skip
        if bad:
            print(log.read_text()[-3000:], file=sys.stderr)
        log.unlink()
    for child in others:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    shutil.rmtree(folder)
    return int(failed)


def prepare(folder: Path) -> None:
    """A config, a run of it, and images to predict; whatever a rank imports is imported then."""
    (folder / "tiny.yaml").write_text(CONFIG.format(folder=folder))
    (folder / "photos").mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{i}.png")
    distcnn.train(f"{folder}/tiny.yaml", {"name": "made", "tracking.console": False})
    distcnn.evaluate(f"{folder}/runs/made")


def busy() -> int:
    """A process that computes; returns its id."""
    if child := os.fork():
        return child
    while True:
        pass


if __name__ == "__main__":
    sys.exit(main())
