"""S4 to S6: what a whole-step CUDA graph and torch.compile would bring, the speed-runs, and what a group costs."""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before there is a group: its functions would hold it for good

import distcnn.training.loop as loop
from benchmarks.gpu.timing import block_s, in_turn, milliseconds, spread
from distcnn.bench.measure import FixedRate
from distcnn.config.settings import Settings as Parsed
from distcnn.distributed.world import World
from distcnn.errors import first_line
from distcnn.training.run import Run
from tests.gpu.correct_bits import steps_of
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
        self.steps = steps_of(settings, rate)
        self.batches = self.steps.batches()
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
        return loop.train_step(self.steps.run, iter(self.batches))

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


def compiled(settings: Settings) -> Callable[[], torch.Tensor]:
    """A step whose network is compiled with all that the compiler can try, graphs left out."""
    steps = steps_of(settings)
    steps.run.engine.compute_model.compile(mode="max-autotune-no-cudagraphs", dynamic=False)
    batches = steps.batches()
    return lambda: loop.train_step(steps.run, iter(batches))


def faster(seconds: dict[str, list[float]], way: str) -> str:
    """Than the eager one."""
    return f"{statistics.median(seconds['eager']) / statistics.median(seconds[way]):.2f} ×"


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
    shown, wrong = [], []
    for name, settings in kinds.items():
        plain, graphed = Captured(place, settings, 0.01), Captured(place, settings, 0.01)
        pairs = [(plain.eager().clone(), graphed.replay().clone()) for _ in range(place.of(50, 3))]
        apart = sum(not torch.equal(one, other) for one, other in pairs)
        seconds = in_turn(place, {"eager": plain.eager, "graph": graphed.replay}, place.of(30, 2), place.of(5, 2))
        found = [f"{name}: graph {faster(seconds, 'graph')}"]
        place.note(**{name: {"seconds": seconds, "losses_apart": apart}})
        if apart:
            wrong.append(f"{name}: {apart} losses differ")
        if not place.toy:
            try:  # its compiler may fail, or not be there
                seconds = in_turn(place, {"eager": plain.eager, "compiled": compiled(settings)}, 30)
                place.note(**{f"{name}, compiled": {"seconds": seconds}})
                found.append(f"compiled {faster(seconds, 'compiled')}")
            except Exception as error:
                wrong.append(f"{name}, compiled: {type(error).__name__}: {first_line(error)}")
        shown.append(", ".join(found))
    expect(not wrong, "; ".join([*wrong, *shown]))
    return "; ".join(shown)


@SPEED.check(
    "S5",
    "the speed-runs on CIFAR-10, seconds of steps and accuracy, seeds 0 to 2",
    "batch 2000 ≈ 1.8 s, shipped ≈ 5 s, 90.2 % ± 0.5 (estimates); none under 89.5 %",
    100,
)
def s5(place: Place) -> str:
    images = of_data(place, {})
    shown, accuracies = [], []
    for file in ("cifar10_speedrun_gpu", "cifar10_speedrun"):
        found: dict[str, list[float]] = {"seconds": [], "accuracy": []}
        for seed in place.of((0, 1, 2), (0,)):
            more: Settings = {"train.device": place.device, "output_dir": str(place.home / "runs"), "tracking.wandb": "disabled",
                              "tracking.report": False, "seed": seed} | images  # fmt: skip
            if place.toy:
                more |= {"train.duration": "2step", "data.augment": ["crop", "flip", {"progressive_resize": {"sizes": [12], "until": "1step"}}], "train.threads": 1,
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
        accuracies += found["accuracy"]
        shown.append(f"{file}: {spread(found['seconds'])} s, {spread([100 * one for one in found['accuracy']])} %")
    if "airbench" in place.extra:
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, str(place.extra["airbench"])], env=clean_environment(), cwd=place.home,
                              capture_output=True, text=True, check=False)  # fmt: skip
        place.note(airbench=done.stdout[-3000:], airbench_s=time.perf_counter() - begun)
        last = re.sub(r"\s+", " ", done.stdout.strip().splitlines()[-1]) if done.stdout.strip() else done.stderr[-100:]
        shown.append(f"airbench: {last}")
    expect(place.toy or min(accuracies) > 0.895, "; ".join(shown))
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
    run = Run(chosen, world)
    run.schedule = FixedRate(0.0)
    run.build()
    run.engine.compute_model.train()
    batches = [batch for batch, _ in zip(run.loader.epoch(0), range(run.plan.accumulation), strict=False)]

    def step() -> None:
        loop.train_step(run, iter(batches))

    return step


@SPEED.check(
    "S6",
    "what a group costs: one rank of 4 × 128 images over NCCL; rank 0 of 8 with 128 each, without an exchange; resnet18",
    "of 8: ≤ 3.2 ms a step (estimate)",
    30,
)
def s6(place: Place) -> str:
    share = place.of(128, 10)
    found: dict[str, list[float]] = {}
    for sums in ("fp64", "fp32"):
        settings = base(place, model__name=place.of("resnet18", "simple_cnn"), train__precision="bf16", train__gradient_sum=sums,
                        train__batch_size=4 * share, train__micro_batch=share)  # fmt: skip
        # One rank takes four micro-batches: float64 has nothing to do where there is one part of a sum, or two.
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
