"""Golden curves: what some small configs do at each step, as text, so that a change of numerics shows in a diff.

`make golden` writes them anew; the commit then explains each change. Beside each tests/golden/curves/NAME.yaml stands
NAME.txt: the loss and the learning rate of each step, as the optimizer held it when it stepped, and what the last
evaluation counted. The loss is that of metrics.jsonl, the mean over the global batch.
"""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import distcnn
from tests.records import metrics

FOLDER = Path(__file__).parent / "curves"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
QUIET = {"train.threads": 1, "train.device": "cpu", "tracking.wandb": "disabled", "tracking.console": False,
         "tracking.report": False}  # fmt: skip


@dataclass(frozen=True)
class Tolerance:
    """How far a run on another CPU may be from the golden curve; the learning rates may not (1e-6).

    The golden curves are AVX512's. Beside each stands what was seen, on one machine, of AVX2 and of the code without
    either (ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA, MKL_ENABLE_INSTRUCTIONS). A ReLU or a max-pool near a tie makes
    much of the last bit within some tens of steps, and Muon's products are bfloat16's.
    """

    first: float  # of the first step's loss, relative
    losses: float  # of any step's loss, relative
    loss: float  # of the evaluation's loss, relative
    counts: int  # of its integers


# AVX2, plain: first step; any step; the evaluation's loss; its integers
TOLERANCES = {
    "depth": Tolerance(1e-5, 5e-2, 2e-2, 2),  # 0, 2e-7; 4e-3, 2e-2; 1e-3, 7e-3; 0, 0
    "masters": Tolerance(1e-3, 1e-1, 1.5e-1, 2),  # 7e-5, 1e-4; 5e-2, 3e-2; 3e-4, 5e-2; 1, 1
    "mixed": Tolerance(2e-4, 5e-2, 1e-1, 4),  # 1e-5, 9e-6; 1e-2, 2e-2; 2e-2, 4e-2; 1, 0
    "muon": Tolerance(1e-5, 5e-2, 2e-2, 3),  # 0, 0; 2e-2, 2e-2; 4e-3, 6e-3; 1, 1
    "recipe": Tolerance(1e-5, 1e-5, 1e-5, 0),  # 0, 0; 2e-7, 2e-7; 6e-8, 0; 0, 0
    "speedrun": Tolerance(1e-5, 5e-3, 2e-3, 2),  # 0, 0; 9e-4, 1e-3; 4e-4, 3e-4; 0, 1
    "streaming": Tolerance(1e-5, 3e-2, 5e-3, 2),  # 0, 0; 1e-7, 8e-3; 0, 1e-3; 0, 0
    "tutorial": Tolerance(1e-5, 5e-3, 5e-3, 2),  # 0, 0; 2e-3, 2e-6; 1e-3, 2e-7; 1, 0
}


@dataclass(frozen=True)
class Curve:
    """A run as numbers."""

    losses: list[float]  # of each step
    rates: list[list[float]]  # of each step: those of the optimizer's groups, each once, in rising order
    correct: int
    top5: int
    total: int
    loss: float  # of the last evaluation, a mean over the images

    @classmethod
    def read(cls, text: str) -> "Curve":
        """What `text` has written."""
        _, *rows, last = (line.replace(",", "").split() for line in text.splitlines())
        _, loss, _, correct, *_, top5, _, total = last
        rates = [[float(rate) for rate in row[2].split("/")] for row in rows]
        return cls([float(row[1]) for row in rows], rates, int(correct), int(top5), int(total), float(loss))

    def text(self) -> str:
        """As it is kept."""
        rows = [
            f"{step:4}  {loss:.7f}  {'/'.join(f'{rate:.7g}' for rate in rates)}\n"
            for step, (loss, rates) in enumerate(zip(self.losses, self.rates, strict=True), 1)
        ]
        last = f"eval  {self.loss:.7f}  correct {self.correct}, in the first five {self.top5}, of {self.total}\n"
        return "step  loss       learning rate\n" + "".join(rows) + last


def kept(name: str) -> Curve:
    """The golden one."""
    return Curve.read((FOLDER / f"{name}.txt").read_text())


def run(name: str, folder: Path) -> Curve:
    """Train as the config says, in this process's place among the ranks; `folder` is where the run is put."""
    threads = torch.get_num_threads()
    with rates_as_held() as rates:
        found = distcnn.train(FOLDER / f"{name}.yaml", QUIET | {"output_dir": str(folder)})
    torch.set_num_threads(threads)
    losses = [line["loss"] for line in metrics(found.folder, "train")]
    last = metrics(found.folder, "eval")[-1]
    return Curve(losses, rates, last["correct"], last["top5_correct"], last["total"], last["loss"])


@contextmanager
def rates_as_held() -> Iterator[list[list[float]]]:
    """The learning rates of each step of any optimizer meanwhile."""
    rates: list[list[float]] = []

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        rates.append(sorted({float(group["lr"]) for group in optimizer.param_groups}))

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield rates
    finally:
        handle.remove()


def main() -> None:
    """Write those that are named, or all; as one of several ranks, too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*", default=NAMES)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="write them here")
    options = parser.parse_args()
    for name in options.names:
        with TemporaryDirectory() as folder:
            runs = folder if options.folder == FOLDER else options.folder  # of all ranks alike
            curve = run(name, Path(runs))
        if os.environ.get("RANK", "0") == "0":
            (options.folder / f"{name}.txt").write_text(curve.text())
            print(name, f"{curve.losses[0]:.4f} to {curve.losses[-1]:.4f}, {curve.correct} of {curve.total}")


if __name__ == "__main__":
    main()
