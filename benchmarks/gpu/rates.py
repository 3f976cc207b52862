"""S1, S2, S7, S8: operations and gaps of a step, `distcnn bench step`, what a run does between steps, the streaming loader."""

import json
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd.profiler import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.parts import fake_world, step_of_a_rank
from benchmarks.gpu.timing import spread
from distcnn.config.settings import Settings as Parsed
from distcnn.distributed.watchdog import Watchdog
from distcnn.distributed.world import World
from distcnn.training.run import Run
from tests.gpu.correct_bits import steps_of
from tests.gpu.suite import Place, expect
from tests.gpu.suites import SPEED
from tests.gpu.work import Settings, base, command, good, words

VIEWS = {
    "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "expand", "slice", "select", "as_strided", "detach",
    "alias", "unsqueeze", "squeeze", "split", "split_with_sizes", "unbind", "empty", "empty_like", "empty_strided",
    "new_empty", "new_empty_strided", "_to_copy", "lift_fresh", "set_", "is_same_size", "_reshape_alias", "unfold",
}  # fmt: skip


class Counted(TorchDispatchMode):
    """The operations that do some work: views and empty memory do none."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func.overloadpacket.__name__ not in VIEWS
        return func(*args, **(kwargs or {}))


def rows(place: Place) -> dict[str, Settings]:
    """Steps from host-bound to GPU-bound."""
    bf16: Settings = {"train.precision": "bf16"}
    ema = {"model.name": "resnet18", "train.ema": 0.999, "loss.args": {"label_smoothing": 0.1}}
    muon = {"model.name": "whitened_cnn", "optim.name": "muon", "optim.lr": 0.01, "train.precision": "bf16-master"}
    sizes = {
        "simple_cnn 512": ({}, 512, 512), "simple_cnn 4 × 128": ({}, 512, 128), "resnet18 512": (ema, 512, 512),
        "resnet18 4 × 32": (ema, 128, 32), "resnet18 4 × 128": (ema, 512, 128), "resnet18 4 × 256": (ema, 1024, 256), "whitened 4 × 125": (muon, 500, 125),
        "whitened 2000": (muon, 2000, 2000),
    }  # fmt: skip
    found = {}
    for name, (more, batch, micro) in sizes.items():
        size: Settings = {"train.batch_size": batch, "train.micro_batch": micro, "data.args.train": 20_480}
        found[name] = base(place) | bf16 | more | size
    if place.toy:
        found = {name: found[name] | {"train.batch_size": 40, "train.micro_batch": micro} for name, micro in
                 (("simple_cnn 4 × 128", 10),)}  # fmt: skip
    return found


def of_eight(place: Place) -> dict[str, Settings]:
    """Steps of one of 8 ranks, whose batches are made before: one micro-batch a rank."""
    sizes: Settings = {"train.batch_size": 1024, "train.micro_batch": 128}
    resnet = base(place, model__name="resnet18", train__precision="bf16") | sizes
    whitened = base(place, model__name="whitened_cnn", train__precision="bf16-master", optim__name="muon") | sizes
    kinds = {"fp64": resnet, "fp32 sums": resnet | {"train.gradient_sum": "fp32"}, "whitened": whitened}
    if place.toy:
        kinds = {"simple_cnn": base(place, train__batch_size=80, train__micro_batch=10)}
    return {f"{name} of 8": settings for name, settings in kinds.items()}


def seen(place: Place, step: Callable[[], object]) -> dict[str, float]:
    """Operations of a step and, on a GPU, its launches, the part of its time in which the GPU is busy, and its µs."""
    for _ in range(3):
        step()
    with Counted() as counted:
        step()
    count = place.of(5, 2)
    if place.cuda:
        torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if place.cuda else [])]) as profiled:
        for _ in range(count):
            step()
        if place.cuda:
            torch.cuda.synchronize()
    found: dict[str, float] = {"operations": counted.number}
    # An annotation is a range of kernels and of the pauses between them.
    kernels = [e for e in profiled.events() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    if kernels:
        times = [(e.time_range.start, e.time_range.end) for e in kernels]  # µs
        whole = max(end for _, end in times) - min(begin for begin, _ in times)
        found |= {"launches": len(kernels) / count, "busy": covered(times) / whole, "step_us": whole / count}
    return found


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """How much of the line they cover, what several cover counted once."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


@SPEED.check(
    "S1",
    "operations, launches and the GPU's share of a step",
    "busy ≥ 90 % for resnet18 512; ≈ 30 % for 4 × 32 (estimate)",
    55,
    first=True,
)
def s1(place: Place) -> str:
    found: dict[str, dict[str, float]] = {}
    known = rows(place)
    if not place.toy:
        for name in ("simple_cnn 4 × 128", "resnet18 4 × 32"):
            known[f"{name}, fp32 sums"] = known[name] | {"train.gradient_sum": "fp32"}
    for name, settings in known.items():
        steps = steps_of(settings)
        found[name] = seen(place, steps.step)
        steps.close()
        place.note(**{name: found[name]})
    for name, settings in of_eight(place).items():
        with fake_world(8) as world:
            found[name] = seen(place, step_of_a_rank(settings, world))
        place.note(**{name: found[name]})
    expect(all(row["operations"] > 50 for row in found.values()), f"{found}")
    if not place.cuda:
        return ", ".join(f"{name}: {row['operations']:.0f} operations" for name, row in found.items())
    expect(all("busy" in row for row in found.values()), f"the profiler saw no kernel: {found}")
    shown = "; ".join(f"{n}: {row['launches']:.0f} launches, busy {row['busy']:.0%}" for n, row in found.items())
    expect(place.toy or found["resnet18 512"]["busy"] >= 0.9, shown)
    return shown


# images/s on one H100; estimates, made before any of it had run on a GPU.
ESTIMATES = {"simple_cnn 512": 640_000, "resnet18 512": 50_000, "resnet18 1024": 54_000, "resnet18 4 × 32": 10_000,
             "whitened 2000": 250_000, "resnet18 512 fp32": 8_500, "resnet18 512 TF32": 25_000}  # fmt: skip


@SPEED.check("S2", "distcnn bench step, images/s", "at least half of the estimates", 105, first=True)
def s2(place: Place) -> str:
    known = rows(place)
    if not place.toy:
        known["resnet18 1024"] = known["resnet18 512"] | {"train.batch_size": 1024, "train.micro_batch": 1024}
        known["resnet18 512 fp32"] = known["resnet18 512"] | {"train.precision": "fp32"}
        known["resnet18 512 TF32"] = known["resnet18 512 fp32"] | {"train.tf32": True}
    rates, slow = {}, []
    config = place.home / "bench.yaml"
    config.write_text("{}\n", encoding="utf-8")
    for name, settings in known.items():
        options = ["--steps", str(place.of(40, 5)), "--json"]
        if name == "simple_cnn 512":
            options.append("--micro-batches")
        outcome = good(
            command(place, "bench", "step", str(config), *options, *words(settings)), f"bench step of {name}"
        )
        one = json.loads(outcome.out.strip().splitlines()[-1])
        rates[name] = one["images_per_s"]
        place.note(**{name: {key: one[key] for key in ("images_per_s", "phases", "utilisation", "peak_memory_bytes")}})
        if not place.toy and rates[name]["median"] < 0.5 * ESTIMATES.get(name, 0):
            slow.append(name)
    shown = "; ".join(
        f"{n} {r['median']:,.0f} ({r['min']:,.0f} to {r['max']:,.0f}, n = {r['n']})" for n, r in rates.items()
    )
    expect(not slow, f"under half of the estimate: {', '.join(slow)}; {shown}")
    return shown


@SPEED.check(
    "S7",
    "seconds that 3 epochs of resnet18 at 512 lose between steps",
    "evaluation ≈ 40 ms, save ≈ 50 ms, epoch 4 to 11 ms (estimates)",
    20,
)
def s7(place: Place) -> str:
    """By the host's clock: the phases in which the host waits for the device, or the device for the host."""
    batch = place.of(512, 40)
    settings = base(place, model__name=place.of("resnet18", "simple_cnn"), train__precision="bf16", train__batch_size=batch,
                    train__micro_batch=batch, train__duration="3ep", eval__every="1ep", checkpoint__every="1ep",
                    data__args__train=place.of(20_480, 200), train__ema=0.99, name="whole")  # fmt: skip
    spent: dict[str, list[float]] = {}
    entered = Watchdog.enter
    last: list[Any] = ["", 0.0]

    def enter(self: Watchdog, phase: str) -> None:
        now = time.perf_counter()
        spent.setdefault(last[0], []).append(now - last[1])
        last[:] = [phase, now]
        entered(self, phase)

    Watchdog.enter = enter  # type: ignore[method-assign]
    import distcnn

    distcnn.train(settings)
    phases = {name: spent[name] for name in ("log", "evaluation", "checkpoint", "data")}
    place.note(**{name: [1000 * one for one in values] for name, values in phases.items()})
    epochs = sorted(phases.pop("data"))[-3:]  # the first data of an epoch takes the longest
    total = {name: 1000 * sum(values) for name, values in phases.items()}
    shown = ", ".join(f"{name} {one:.0f} ms in all" for name, one in total.items())
    expect(len(spent["checkpoint"]) >= 2, f"{len(spent['checkpoint'])} saves")  # the last one's end is not seen
    return f"{shown}; an epoch's beginning {spread([1000 * one for one in epochs])} ms"


@SPEED.check(
    "S8", "the streaming loader alone, images/s on the device", "224 px: at least 8,000 with 8 workers (estimate)", 40
)
def s8(place: Place) -> str:
    found: dict[str, list[float]] = {}
    sizes = place.of({32: (0, 4, 12), 224: (8, 12)}, {16: (0, 1)})
    kinds = [
        (size, count, ops) for size in sizes for ops in (None, ["crop", "flip", "randaugment"]) for count in sizes[size]
    ]
    for size, workers, ops in kinds:
        batch = place.of(64 if size > 100 else 128, 20)
        images = batch * max(1, workers) * place.of(8, 4)  # a worker is asked for a batch eight times an epoch
        settings = base(place, data__image_size=size, data__loader="streaming", data__workers=workers, data__args__train=images,
                        train__batch_size=batch, train__micro_batch=batch, model__name="resnet9",
                        model__args={"width": 4}, **({"data__augment": ops} if ops else {}))  # fmt: skip
        chosen = Parsed().read_arguments(words(settings)).check(1)
        run = Run(chosen, World())
        run.build()
        loader = run.loader
        rates = []
        for epoch in range(place.of(3, 2)):
            begun = time.perf_counter()
            seen = sum(len(batch.labels) for batch in loader.epoch(epoch))
            if place.cuda:
                torch.cuda.synchronize()
            rates.append(seen / (time.perf_counter() - begun))
        name = f"{size} px, {workers} workers{', RandAugment' if ops else ''}"
        found[name] = rates[1:]  # the first starts the workers
        place.note(**{name: rates})
        del loader
    expect(all(min(rates) > 0 for rates in found.values()), f"{found}")
    shown = "; ".join(f"{name} {spread(rates, 0)}" for name, rates in found.items())
    if not place.toy:
        expect(statistics.median(found["224 px, 8 workers"]) >= 8000, shown)
    return shown
