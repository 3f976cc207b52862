"""Operations of one optimizer step of each recipe in configs/, by phase: on a GPU each is about one kernel launch.

`python -m tests.golden.operations` writes operations.txt anew, and the table in docs/performance.md. Counted
on the CPU, with the loader, the engine and the `train_step` of a run, as one rank alone and as rank 0 of 8 (PyTorch's
`fake` process group, whose exchanges arrive nowhere). Alone it is the second step, since some things are made in the
first one; of ranks the third, since DDP rearranges its buckets in the second. The sizes of images and batch make no
operation more or less, so the micro-batches are tiny: alone as many as the recipe has, with 8 ranks one on each.

Views, metadata and memory that is only allocated are left out; an operation over a list of tensors counts once.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distcnn.config.schema import Config
from distcnn.config.settings import Settings
from distcnn.data.loaders.batch import Batch
from distcnn.distributed.watch import Watch
from distcnn.distributed.world import World
from distcnn.training.loop import train_step
from distcnn.training.run import Run

TABLE = Path(__file__).parent / "operations.txt"
CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if "program" not in yaml.safe_load(path.read_text()))
PAGE = CONFIGS.parent / "docs" / "performance.md"
PHASES = ("data", "forward", "backward", "statistics", "optimizer")
COLUMNS = (*PHASES, "sum", "exchanges", "MiB")
RANKS = 8
IMAGES = 2  # of a micro-batch
_ONLY_MEMORY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_NO_KERNEL = _ONLY_MEMORY | {"detach", "_unsafe_view", "lift_fresh", "is_pinned"}


class Operations(TorchDispatchMode):
    """Counts what is dispatched while it is active, by the phase that `enter` has named last."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = dict.fromkeys(PHASES, 0)
        self.names: dict[str, Counter[str]] = {phase: Counter() for phase in PHASES}
        self.exchanges: list[str] = []  # in their order: what, of how many elements, of which dtype
        self.exchanged = 0  # bytes
        self.phase = "optimizer"  # the copies that a step begins with are made of the weights

    def enter(self, phase: str) -> None:
        """Something else begins; what an exchange costs is the backward's."""
        self.phase = "backward" if phase == "gradient sync" else phase

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count it, and do it."""
        name = func._schema.name.split("::")[1]
        if func.namespace == "c10d":
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            self.exchanges.append(f"{name} {' '.join(f'{t.numel()} {t.dtype}' for t in tensors)}")
            self.exchanged += sum(t.nbytes for t in tensors)
        elif func.namespace == "aten" and not func.is_view and name not in _NO_KERNEL:
            self.counts[self.phase] += 1
            self.names[self.phase][name] += 1
        return func(*args, **(kwargs or {}))


@dataclass
class Step:
    """One optimizer step of a recipe."""

    operations: Operations
    shapes: list[tuple[int, ...]] = field(default_factory=list)  # of this rank's micro-batches, in their order
    loss: Tensor | None = None


def settled(size: int) -> int:
    """The number of the step that is counted, from 1 on: later ones of whole micro-batches do the same."""
    return 2 if size == 1 else 3


def load(recipe: str, world: World) -> Config:
    """A recipe on synthetic images; at more than one rank, with one micro-batch on each."""
    raw = Settings().read_yaml(CONFIGS / f"{recipe}.yaml").check(1).train
    micro_batches = 1 if world.size > 1 or raw.micro_batch is None else raw.batch_size // raw.micro_batch
    batch = IMAGES * micro_batches * world.size
    sizes = {
        "train.batch_size": batch, "train.micro_batch": IMAGES, "train.device": "cpu", "data.args.test": 10,
        "data.args.train": settled(world.size) * batch + (IMAGES + 1) * (world.size > 1),
        "output_dir": ".", "train.threads": 1,
    }  # fmt: skip
    settings = Settings().read_yaml(CONFIGS / f"{recipe}.yaml").update({"data.source": "synthetic"} | sizes)
    return settings.check(world.size)


@contextmanager
def pretended(rank: int, size: int) -> Iterator[World]:
    """Within, this process is one rank of a group whose others do not exist; of none at all at size 1."""
    world = World(rank=rank, size=size, local_rank=rank, local_size=size)
    if size == 1:
        yield world
        return
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield world
    finally:
        dist.destroy_process_group()


class Phases(Watch):
    """Tells the step's phases to the Operations of the step."""

    operations = Operations()

    def enter(self, phase: str) -> None:
        """Something else begins."""
        self.operations.enter(phase)


def steps(run: Run) -> Iterator[Step]:
    """The steps of the first epoch as `fit` makes them, each when it is asked for."""
    run.watch = phases = Phases(run.device)
    run.build()
    run.engine.compute_model.train()
    batches, shapes = run.loader.epoch(0), list[tuple[int, ...]]()

    def noted() -> Iterator[Batch]:
        for batch in batches:
            shapes.append(tuple(batch.images.shape))
            yield batch

    stream = noted()
    for _ in range(run.plan.steps_per_epoch):
        with Operations() as phases.operations:
            loss = train_step(run, stream)
        yield Step(phases.operations, list(shapes), loss)
        shapes.clear()
    run.statistics.close()


def count(recipe: str, rank: int = 0, size: int = 1) -> list[Step]:
    """All steps of a recipe's first epoch: up to the one that counts and, of ranks, a short one."""
    threads = torch.get_num_threads()
    with pretended(rank, size) as world:
        found = list(steps(Run(load(recipe, world), world)))
    torch.set_num_threads(threads)
    return found


def row(recipe: str, size: int, found: list[Step]) -> list[str]:
    """One line of the table."""
    operations = found[settled(size) - 1].operations
    exchanged = f"{operations.exchanged / 2**20:.1f}" if operations.exchanges else "0"
    counts = [*operations.counts.values(), sum(operations.counts.values()), len(operations.exchanges)]
    return [recipe, str(size), *map(str, counts), exchanged]


def release() -> str:
    """Of PyTorch, without its last number: what an operation consists of may change between them."""
    return ".".join(torch.__version__.split(".")[:2])


def kept() -> tuple[str, dict[tuple[str, int], list[str]]]:
    """The PyTorch release that was counted with, and the rows by recipe and ranks."""
    release, _, *rows = (line.split() for line in TABLE.read_text().splitlines())
    return release[1], {(row[0], int(row[1])): row for row in rows}


def markdown(rows: list[list[str]]) -> str:
    """The table as docs/performance.md shows it."""
    titles = ["recipe", "ranks", *COLUMNS]
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *([f"`{row[0]}`", *row[1:]] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Count, and write the file and the page."""
    rows = [row(recipe, size, count(recipe, 0, size)) for recipe in RECIPES for size in (1, RANKS)]
    table = [["recipe", "ranks", *(title.replace(" ", "_") for title in COLUMNS)], *rows]
    text = "".join(f"{line[0]:22}" + "".join(f"{cell:>12}" for cell in line[1:]) + "\n" for line in table)
    TABLE.write_text(f"torch {release()}\n{text}")
    PAGE.write_text(re.sub(r"(?m)^\| recipe \| ranks .*\n(\|.*\n)*", markdown(rows), PAGE.read_text()))
    print(text)


if __name__ == "__main__":
    main()
