"""Measures training steps, the very ones of a run: their rate, phases and FLOPs, and what the machine could do at best.

Everything here is called on all ranks alike, inside the process group.
"""

import itertools
import resource
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from copy import copy, deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import Self

from distcnn.bench.layout import layout_audit
from distcnn.bench.timing import Mark, mark, seconds_between, wait
from distcnn.checkpoint.state import Progress
from distcnn.data.loaders.batch import Batch
from distcnn.distributed.collectives import stack_ranks, sum_ranks
from distcnn.distributed.watch import Watch
from distcnn.optim.optimizers import make_optimizer
from distcnn.optim.schedules import Schedule
from distcnn.training.loop import train_step
from distcnn.training.run import Run

PHASES = ("data", "forward", "backward", "gradient sync", "statistics", "optimizer", "agreement")
_BLOCK = 5  # counted steps between two changes from the loader to the fixed batch and back


class Stopwatch(Watch):
    """Takes the time of each phase of a step, in the place of the Watchdog; nothing waits for the device meanwhile.

    On CUDA the marks are events on the current stream, so that a phase is the time from its first kernel to the next
    phase's first one, wherever the host is by then.
    """

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.marks: list[tuple[str, Mark]] = []

    def start(self) -> None:
        """Forget all phases; the device is idle."""
        self.marks.clear()
        wait(self.device)

    def enter(self, phase: str) -> None:
        """Something else begins."""
        self.marks.append((phase, mark(self.device)))

    def seconds(self) -> Tensor:
        """[steps, phases] float64, in the order of PHASES; ends the last phase. A step ends with its "agreement"."""
        self.enter("")
        wait(self.device)
        rows = [[0.0] * len(PHASES)]
        for (phase, begin), (following, end) in itertools.pairwise(self.marks):
            rows[-1][PHASES.index(phase)] += seconds_between(begin, end)
            if phase == PHASES[-1] and following:
                rows.append([0.0] * len(PHASES))
        return torch.tensor(rows, dtype=torch.float64)


class FixedRate(Schedule):
    """One learning rate at every step."""

    def __init__(self, rate: float):
        self.rate = rate

    def lr_at(self, step: int) -> float:  # noqa: ARG002
        """Return it."""
        return self.rate


class Steps:
    """The steps of a Run without an end, as `fit` makes them; but the learning rate is 0.

    So the weights stay as they were initialised (Muon's fixed norm aside), and what is timed neither drifts nor
    diverges; the optimizer does the same work. The config has to drop each epoch's last, smaller batch: all steps are
    of one size.
    """

    def __init__(self, run: Run):
        self.run = run
        run.watch = self.watch = Stopwatch(run.device)
        run.schedule = FixedRate(0.0)
        run.build()
        run.engine.compute_model.train()
        self.stream = self._endless()

    def _endless(self) -> Iterator[Batch]:
        for epoch in itertools.count():
            yield from self.run.loader.epoch(epoch)

    def batches(self) -> list[Batch]:
        """This rank's micro-batches of the next step."""
        return list(itertools.islice(self.stream, self.run.plan.accumulation))

    def step(self) -> Tensor:
        """One on the loader's batches; see `train_step`."""
        return train_step(self.run, self.stream)

    def seconds(self, steps: int, batches: Iterable[Batch] | None = None) -> Tensor:
        """Seconds of each step and phase, [steps, phases] float64, mean over the ranks; of `batches`, repeated, or
        of the loader's.
        """
        stream = self.stream if batches is None else itertools.cycle(batches)
        self.watch.start()
        for _ in range(steps):
            train_step(self.run, stream)
            self.watch.enter("agreement")
            self.run.stop.agreed()
        return stack_ranks(self.watch.seconds().to(self.run.device)).mean(dim=0).cpu()

    def close(self) -> None:
        """Leave the model as it was."""
        self.run.statistics.close()


@dataclass(frozen=True)
class Spread:
    """Of n numbers."""

    median: float
    min: float
    max: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Raises ValueError for none."""
        known = list(values)
        return cls(statistics.median(known), min(known), max(known), len(known))


def rates(seconds: Tensor, images: int) -> Spread:
    """Images a second of steps [steps, phases] of so many images each."""
    return Spread.of((images / seconds.sum(dim=1)).tolist())


def alternate(steps: Steps, fixed: list[Batch], count: int, warmup: int) -> tuple[Tensor, Tensor, float]:
    """Seconds [count, phases] of steps on the loader's batches, of as many on one fixed batch that lies in memory,
    and how near the first come to the second: the median over pairs of neighbouring blocks of fixed time / time.

    The machine's speed may change while this runs, so the two take turns. A block's first step, which finds the
    caches as the other left them, is not counted.
    """
    loaded, repeated, nearness = [], [], []
    steps.seconds(warmup)
    for begin in range(0, count, _BLOCK):
        size = min(_BLOCK, count - begin)
        loaded.append(steps.seconds(size + 1)[1:])
        repeated.append(steps.seconds(size + 1, fixed)[1:])
        nearness.append(float(repeated[-1].sum(dim=1).median() / loaded[-1].sum(dim=1).median()))
    return torch.cat(loaded), torch.cat(repeated), statistics.median(nearness)


def count_flops(steps: Steps, fixed: list[Batch]) -> int:
    """FLOPs of one step over all ranks: forward and backward of convolutions and products, 2 a multiply-add.

    Not the optimizer's, Muon's products for example: each rank repeats those.
    """
    marks: list[int] = []
    with (
        torch.compiler.set_stance("force_eager"),
        FlopCounterMode(display=False) as counter,
        steps.run.optimizer.register_step_pre_hook(lambda *_: marks.append(counter.get_total_flops())),
    ):
        steps.seconds(1, fixed)
    return marks[0] * steps.run.world.size


def lost_layouts(steps: Steps, fixed: list[Batch]) -> list[str]:
    """Where the channels_last layout is lost in a step; see layout_audit."""
    with torch.compiler.set_stance("force_eager"), layout_audit(steps.run.engine.compute_model) as lost:
        steps.seconds(1, fixed)
    return lost


def gemm_peak(device: torch.device, dtype: torch.dtype, *, repeats: int = 10, seconds: float = 1.0) -> float:
    """FLOP/s of the best of several products of two square matrices, all ranks computing at once, summed over them.

    2048×2048 on the CPU; 8192×8192 on CUDA, where smaller ones do not reach the peak. `train.tf32` holds here too.
    """
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    best, begun = float("inf"), time.perf_counter()
    for i in range(repeats + 1):
        wait(device)
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        wait(device)
        if i > 0:  # the first one only warms up
            best = min(best, time.perf_counter() - start)
        if i > 1 and time.perf_counter() - begun > seconds:
            break
    return float(sum_ranks(torch.tensor(2 * n**3 / best, dtype=torch.float64, device=device)))


def peak_memory(device: torch.device) -> int:
    """Bytes, the most of any rank: on CUDA allocated for tensors, on the CPU resident since the process began."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(stack_ranks(torch.tensor(peak, device=device)).max())


def micro_batch_sizes(share: int, least: int = 16) -> list[int]:
    """Sizes worth a try for a rank's `share` of the global batch: its divisors from `least` on, not too near to
    each other, in rising order.
    """
    sizes = [share]
    for size in range(share - 1, least - 1, -1):
        if share % size == 0 and 1.5 * size <= sizes[-1]:
            sizes.append(size)
    return sizes[::-1]


def try_micro_batches(run: Run, rounds: int = 5) -> dict[int, Spread]:
    """Images a second for each size of micro-batch, in `rounds` turns through all of them, two steps each.

    Each turn trains a copy of the model with everything built anew, so that none inherits another's state or memory.
    """
    plan = run.plan
    share = plan.batch_size // plan.world_size
    sizes = sorted({*micro_batch_sizes(share), plan.micro_batch})
    seconds: dict[int, list[Tensor]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            with closing(Steps(_by_micro_batches(run, size))) as steps:
                seconds[size].append(steps.seconds(3)[1:])
    return {size: rates(torch.cat(seconds[size]), plan.batch_size) for size in sizes}


def _by_micro_batches(run: Run, size: int) -> Run:
    """The same run with micro-batches of another size, a model and an optimizer of its own; nothing else is built."""
    share = run.plan.batch_size // run.plan.world_size
    tried = copy(run)
    tried.plan = replace(run.plan, micro_batch=size, accumulation=share // size)
    tried.model = deepcopy(run.model)
    tried.optimizer = make_optimizer(tried.model, run.config.optim, run.plan.lr)
    tried.progress = Progress()
    return tried
