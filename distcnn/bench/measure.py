"""Measure a run's training steps (images/s, phases, FLOPs) and the machine's peak.

Everything here is a collective: called on all ranks, inside the process group.
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
_BLOCK = 5  # measured steps on the loader, and then on the fixed batch


class Stopwatch(Watch):
    """Measure the phases of each step, in place of the Watchdog, without synchronising with the device.

    On CUDA the marks are events on the current stream, so a phase is the time from its first kernel to the first kernel
    of the next phase, however far ahead the host is.
    """

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.marks: list[tuple[str, Mark]] = []

    def start(self) -> None:
        """Forget all phases and wait until the device is idle."""
        self.marks.clear()
        wait(self.device)

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        self.marks.append((phase, mark(self.device)))

    def seconds(self) -> Tensor:
        """End the last phase; return [steps, phases] float64, in the order of PHASES. A step ends with "agreement"."""
        self.enter("")
        wait(self.device)
        rows = [[0.0] * len(PHASES)]
        for (phase, begin), (following, end) in itertools.pairwise(self.marks):
            rows[-1][PHASES.index(phase)] += seconds_between(begin, end)
            if phase == PHASES[-1] and following:
                rows.append([0.0] * len(PHASES))
        return torch.tensor(rows, dtype=torch.float64)


class FixedRate(Schedule):
    """The same learning rate at every step."""

    def __init__(self, rate: float):
        self.rate = rate

    def lr_at(self, step: int) -> float:  # noqa: ARG002
        """Return the rate."""
        return self.rate


class Steps:
    """An endless sequence of a Run's training steps, as in `fit`, but with learning rate 0.

    The weights therefore keep their initial values (except for Muon's fixed norm), and the timing neither drifts nor
    diverges, while the optimizer does the same work. The config must drop each epoch's last, smaller batch, so that all
    steps have the same size.
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
        """Return this rank's micro-batches of the next step."""
        return list(itertools.islice(self.stream, self.run.plan.accumulation))

    def step(self) -> Tensor:
        """Run one step on the loader's batches; see `train_step`."""
        return train_step(self.run, self.stream)

    def seconds(self, steps: int, batches: Iterable[Batch] | None = None) -> Tensor:
        """Run steps on `batches`, repeated, or on the loader's; return their seconds, [steps, phases] float64.

        The seconds are means over the ranks.
        """
        stream = self.stream if batches is None else itertools.cycle(batches)
        self.watch.start()
        for _ in range(steps):
            train_step(self.run, stream)
            self.watch.enter("agreement")
            self.run.stop.agreed()
        return stack_ranks(self.watch.seconds().to(self.run.device)).mean(dim=0).cpu()

    def close(self) -> None:
        """Restore the model."""
        self.run.statistics.close()


@dataclass(frozen=True)
class Spread:
    """Median and range of n numbers."""

    median: float
    min: float
    max: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Summarise at least one value. Raises ValueError if there is none."""
        known = list(values)
        return cls(statistics.median(known), min(known), max(known), len(known))


def images_per_s(seconds: Tensor, images: int) -> Spread:
    """Return the images/s of steps of `images` images each, from their seconds [steps, phases]."""
    return Spread.of((images / seconds.sum(dim=1)).tolist())


def alternate(steps: Steps, fixed: list[Batch], count: int, warmup: int) -> tuple[Tensor, Tensor, float]:
    """Return the seconds [count, phases] of steps on the loader's batches and on one fixed batch, and their ratio.

    The ratio, the loader's efficiency, is the median of fixed / loader over pairs of neighbouring blocks: the two
    alternate in blocks, because the machine's speed may change meanwhile. A block's first step is not counted, because
    it finds the caches as the other kind of step left them.
    """
    loaded, repeated, efficiency = [], [], []
    steps.seconds(warmup)
    for begin in range(0, count, _BLOCK):
        size = min(_BLOCK, count - begin)
        loaded.append(steps.seconds(size + 1)[1:])
        repeated.append(steps.seconds(size + 1, fixed)[1:])
        efficiency.append(float(repeated[-1].sum(dim=1).median() / loaded[-1].sum(dim=1).median()))
    return torch.cat(loaded), torch.cat(repeated), statistics.median(efficiency)


def count_flops(steps: Steps, fixed: list[Batch]) -> int:
    """Return the FLOPs of one step over all ranks: forward and backward of convolutions and matrix products.

    A multiply-add counts 2. The optimizer's, such as Muon's products, are not included: each rank repeats those.
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
    """Return where a step loses the channels_last layout; see layout_audit."""
    with torch.compiler.set_stance("force_eager"), layout_audit(steps.run.engine.compute_model) as lost:
        steps.seconds(1, fixed)
    return lost


def gemm_peak(device: torch.device, dtype: torch.dtype, *, repeats: int = 10, seconds: float = 1.0) -> float:
    """Return the FLOP/s of the fastest of several square matrix products, on all ranks at once, summed over the ranks.

    2048×2048 on the CPU; 8192×8192 on CUDA, where smaller ones do not reach the peak. `train.tf32` applies here too.
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
        if i > 0:  # the first one is a warm-up
            best = min(best, time.perf_counter() - start)
        if i > 1 and time.perf_counter() - begun > seconds:
            break
    return float(sum_ranks(torch.tensor(2 * n**3 / best, dtype=torch.float64, device=device)))


def peak_memory(device: torch.device) -> int:
    """Return the maximum over the ranks, in bytes: on CUDA, allocated for tensors; on the CPU, resident."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(stack_ranks(torch.tensor(peak, device=device)).max())


def micro_batch_sizes(share: int, least: int = 16) -> list[int]:
    """Return sizes to try for a rank's `share` of the global batch, in ascending order.

    They are divisors of it from `least` on, each at least 1.5 times the previous one.
    """
    sizes = [share]
    for size in range(share - 1, least - 1, -1):
        if share % size == 0 and 1.5 * size <= sizes[-1]:
            sizes.append(size)
    return sizes[::-1]


def try_micro_batches(run: Run, rounds: int = 5) -> dict[int, Spread]:
    """Return the images/s of each micro-batch size, measured in `rounds` rounds over all sizes, two steps each.

    Each measurement trains a copy of the model with everything rebuilt, so none inherits another's state or memory.
    """
    plan = run.plan
    share = plan.batch_size // plan.world_size
    sizes = sorted({*micro_batch_sizes(share), plan.micro_batch})
    seconds: dict[int, list[Tensor]] = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            with closing(Steps(_by_micro_batches(run, size))) as steps:
                seconds[size].append(steps.seconds(3)[1:])
    return {size: images_per_s(torch.cat(seconds[size]), plan.batch_size) for size in sizes}


def _by_micro_batches(run: Run, size: int) -> Run:
    """Return a copy of the run with another micro-batch size and its own model and optimizer."""
    share = run.plan.batch_size // run.plan.world_size
    tried = copy(run)
    tried.plan = replace(run.plan, micro_batch=size, accumulation=share // size)
    tried.model = deepcopy(run.model)
    tried.optimizer = make_optimizer(tried.model, run.config.optim, run.plan.lr)
    tried.progress = Progress()
    return tried
