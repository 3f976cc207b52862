"""S4 to S6: what a whole-step CUDA graph and torch.compile would bring, the speed-runs, and what a group costs."""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before there is a group: its functions would hold it for good

import distcnn.training.loop as loop
from benchmarks.gpu.timing import block_s, in_turn, milliseconds, spread
from distcnn.build import make_engine, make_loader, prepare
from distcnn.parallel.world import World
from distcnn.parse import Settings as Parsed
from distcnn.training.batchnorm import RunningStatistics
from tests.gpu.correct_bits import Unwatched, steps_of
from tests.gpu.suite import ROOT, Place, expect
from tests.gpu.suites import SPEED
from tests.gpu.trainings import alone_in_a_group
from tests.gpu.work import Settings, base, environment, good, of_data, words
from tests.ranks import clean_environment, start
from tests.records import metrics


class Captured:
    """One whole step on fixed batches, captured once and replayed. A prototype: the rate and the seeds are constants.

    Without a GPU it is the step itself.
    """

    def __init__(self, place: Place, settings: Settings, rate: float):
        self.steps = steps_of(settings)
        self.batches, self.rate = self.steps.batches(), rate
        self.graph: Any = None
        self.loss: Any = None
        if not place.cuda:
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), seeds_untouched():
            for _ in range(3):
                self.eager()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with seeds_untouched(), torch.cuda.graph(self.graph):
            self.loss = self.eager()

    def eager(self) -> torch.Tensor:
        """As a run makes it."""
        steps = self.steps
        return loop.train_step(steps.engine, iter(self.batches), steps.running, self.rate, 0.1, Unwatched())

    def replay(self) -> torch.Tensor:
        """The captured step."""
        if self.graph is None:
            return self.eager()
        self.graph.replay()
        loss: torch.Tensor = self.loss
        return loss


@contextmanager
def seeds_untouched() -> Iterator[None]:
    """A generator's seed cannot be set while a graph is captured; these networks draw nothing."""
    kept = loop.seed_generators
    loop.seed_generators = lambda *_: None
    try:
        yield
    finally:
        loop.seed_generators = kept


@SPEED.check(
    "S4",
    "prototypes: a whole-step CUDA graph, torch.compile",
    "graph 2.5 ×, 4 ×, 2.3 × (estimates), losses equal to the bit",
    90,
)
def s4(place: Place) -> str:
    bf16 = {"train.precision": "bf16"}
    kinds = {
        "simple_cnn 512": base(place) | bf16 | {"train.batch_size": 512, "train.micro_batch": 512},
        "resnet18 4 × 32": base(place, model__name="resnet18", train__batch_size=128, train__micro_batch=32) | bf16,
        "whitened 4 × 125": base(place, model__name="whitened_cnn", train__batch_size=500, train__micro_batch=125)
        | bf16,
    }
    if place.toy:
        kinds = {"simple_cnn": base(place)}
    shown = []
    for name, settings in kinds.items():
        plain, graphed = Captured(place, settings, 0.01), Captured(place, settings, 0.01)
        if place.cuda:  # the graph's first three steps are the warm-up before its capture
            for _ in range(3):
                plain.eager()
        pairs = [(plain.eager().clone(), graphed.replay().clone()) for _ in range(place.of(50, 3))]
        apart = sum(not torch.equal(one, other) for one, other in pairs)
        ways = {"eager": plain.eager, "graph": graphed.replay}
        if not place.toy:
            compiled = steps_of(settings)
            compiled.engine.computed.compile(mode="max-autotune-no-cudagraphs", dynamic=False)
            batches = compiled.batches()
            ways["compiled"] = lambda c=compiled, b=batches: loop.train_step(  # type: ignore[misc]
                c.engine, iter(b), c.running, 0.0, 0.1, Unwatched()
            )
        seconds = in_turn(place, ways, place.of(30, 2), place.of(5, 2))
        place.note(**{name: {"seconds": seconds, "losses_apart": apart}})
        middle = {way: statistics.median(values) for way, values in seconds.items()}
        factors = ", ".join(f"{way} {middle['eager'] / one:.2f} ×" for way, one in middle.items() if way != "eager")
        shown.append(f"{name}: {factors}{f', {apart} losses differ' if apart else ''}")
        expect(apart == 0, "; ".join(shown))
    return "; ".join(shown)


@SPEED.check(
    "S5",
    "the speed-runs on CIFAR-10, seconds of steps and accuracy, seeds 0 to 2",
    "batch 2000 ≈ 1.8 s, shipped ≈ 5 s, 90.2 % ± 0.5 (estimates)",
    100,
)
def s5(place: Place) -> str:
    images = of_data(place)
    shown = []
    for file in ("cifar10_speedrun_gpu", "cifar10_speedrun"):
        found: dict[str, list[float]] = {"seconds": [], "accuracy": []}
        for seed in place.of((0, 1, 2), (0,)):
            more: Settings = {"train.device": place.device, "output_dir": str(place.home / "runs"), "tracking.wandb": "disabled",
                              "tracking.report": False, "seed": seed} | images  # fmt: skip
            if place.toy:
                more |= {"train.duration": "2step", "data.small_sizes": [12], "data.small_until": "1step", "train.threads": 1,
                         "train.batch_size": 20, "train.micro_batch": 10}  # fmt: skip
            known = environment(place)
            name = f"{file}-{seed}"
            arguments = ["train", str(ROOT / "configs" / f"{file}.yaml"), "--name", name, *words(more)]
            with start(arguments, cwd=place.home, **known) as ranks:
                good(ranks.outcome(3600), name)
            folder = place.home / "runs" / name
            lines = metrics(folder, "train")
            batch = metrics(folder, "event")[0]["environment"]["plan"]["batch_size"]
            found["seconds"].append(sum(batch / line["images_per_s"] for line in lines))
            found["accuracy"].append(metrics(folder, "eval")[-1]["accuracy"])
        place.note(**{file: found})
        shown.append(f"{file}: {spread(found['seconds'])} s, {spread([100 * one for one in found['accuracy']])} %")
    if "airbench" in place.extra:
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, str(place.extra["airbench"])], env=clean_environment(), cwd=place.home,
                              capture_output=True, text=True, check=False)  # fmt: skip
        place.note(airbench=done.stdout[-3000:], airbench_s=time.perf_counter() - begun)
        last = re.sub(r"\s+", " ", done.stdout.strip().splitlines()[-1]) if done.stdout.strip() else done.stderr[-100:]
        shown.append(f"airbench: {last}")
    if not place.toy:
        worst = min(found["accuracy"])
        expect(worst > 0.895, "; ".join(shown))
    return "; ".join(shown)


@contextmanager
def fake_world(size: int) -> Iterator[World]:
    """A group of so many ranks that exchanges nothing; this process is its rank 0."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        yield World(size=size, local_size=size)
    finally:
        dist.destroy_process_group()


def step_of_a_rank(settings: Settings, world: World) -> Any:
    """A function that makes one step of rank 0, inside the group."""
    chosen = Parsed().read_arguments(words(settings)).check(world.size)
    parts = prepare(chosen, world)
    engine, loader = make_engine(chosen, world, parts), make_loader(chosen, world, parts)
    running = RunningStatistics(engine.computed, parts.plan.accumulation * parts.plan.world_size)
    engine.computed.train()
    batches = [batch for batch, _ in zip(loader.epoch(0), range(parts.plan.accumulation), strict=False)]

    def step() -> None:
        loop.train_step(engine, iter(batches), running, 0.0, 0.1, Unwatched())

    return step


@SPEED.check(
    "S6",
    "what a group costs: one rank over NCCL, and rank 0 of 8 without an exchange; resnet18, 128 images a rank",
    "≤ 3.2 ms a step (estimate)",
    30,
)
def s6(place: Place) -> str:
    share = place.of(128, 10)
    found: dict[str, list[float]] = {}
    for sums in ("fp64", "fp32"):
        settings = base(place, model__name=place.of("resnet18", "simple_cnn"), train__precision="bf16", train__gradient_sum=sums,
                        train__batch_size=share, train__micro_batch=share)  # fmt: skip
        count, blocks = place.of(30, 2), place.of(5, 2)
        for backend in ("", "nccl" if place.cuda else "gloo"):
            with alone_in_a_group(backend):
                step = step_of_a_rank(settings, World())
                block_s(place, step, 3)
                found[f"{sums}, {backend or 'no group'}"] = [block_s(place, step, count) for _ in range(blocks)]
        with fake_world(8) as world:
            step = step_of_a_rank(settings | {"train.batch_size": 8 * share}, world)
            block_s(place, step, 3)
            found[f"{sums}, of 8"] = [block_s(place, step, count) for _ in range(blocks)]
    place.note(seconds=found)
    shown = milliseconds(found)
    expect(place.toy or statistics.median(found["fp64, of 8"]) <= 0.0032, shown)
    return shown
