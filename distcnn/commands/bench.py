"""`distcnn bench step CONFIG`: how fast a run's steps are, what takes their time, what the machine could do at best."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distcnn.commands.parser import Handler, Options, Parser, add_json, natural_int, positive_int
from distcnn.config.settings import load_settings
from distcnn.errors import InputError
from distcnn.text import plural

if TYPE_CHECKING:
    from distcnn.config.schema import Config
    from distcnn.distributed.world import World

EPILOG = """examples:
  distcnn bench step configs/cifar10_cnn.yaml
  distcnn bench step configs/cifar10_cnn.yaml --steps 50 --json --train.precision bf16
  distcnn bench step configs/cifar10_cnn.yaml --micro-batches --train.batch_size 2000
  torchrun --standalone --nproc_per_node=2 -m distcnn bench step configs/cifar10_cnn.yaml --train.threads 1

Nothing is written and nothing evaluated. docs/performance.md says what each figure is.
"""


def bench(parser: Parser) -> Handler:
    """Measure a run's training step, and the machine's best."""
    parser.epilog, add = EPILOG, parser.add_argument
    add("what", choices=("step",), help="the training step")
    add("config", metavar="CONFIG.yaml", type=Path, help="the run")
    parser.add_settings()
    parser.set_defaults(problems=[])
    add("--steps", type=positive_int, default=20, metavar="N", help="measured steps; default: 20")
    add("--warmup", type=natural_int, default=3, metavar="N", help="steps before them; default: 3")
    add("--micro-batches", action="store_true", help="try sizes of train.micro_batch, and name the fastest")
    add_json(parser)
    return run


def run(options: Options) -> None:
    """Measure and, on rank 0, print. Raises InputError."""
    from distcnn.distributed.world import world_from

    world = world_from(os.environ)
    settings = load_settings(options.config, options.settings, options.problems)
    from distcnn.training.build import checked

    config = checked(settings, world)
    if options.micro_batches and config.model.compile:
        raise InputError(
            "--micro-batches, model.compile = true: each size would be compiled anew; try sizes one by one"
        )
    found = measure(config, world, options.steps, options.warmup, micro_batches=options.micro_batches)
    if world.is_main:
        print_tables(found)
        if options.json:
            print(json.dumps(found), flush=True)


def measure(config: "Config", world: "World", steps: int, warmup: int, *, micro_batches: bool) -> dict[str, Any]:
    """What `--json` prints; on all ranks."""
    import torch

    from distcnn.bench import measure as measured
    from distcnn.config.schema import CheckpointConfig
    from distcnn.training.build import engine_of
    from distcnn.training.run import Run

    # From the start, and each step of the same size.
    config = replace(config, checkpoint=CheckpointConfig(), train=replace(config.train, drop_last=True))
    trained = Run(config, world)  # its StopRequest hears no signal: its exchange between the ranks is a part of a step
    device, plan, precision = trained.device, trained.plan, config.train.precision
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if precision == "fp16":
        dtypes["fp16"] = torch.float16
    with trained.connected():
        trained.stop.begin(config.train.timeout)
        tried = measured.try_micro_batches(trained) if micro_batches else {}
        peaks = [{kind: measured.gemm_peak(device, dtype) for kind, dtype in dtypes.items()}]
        made = measured.Steps(trained)
        fixed = made.batches()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        loaded, repeated, nearness = measured.alternate(made, fixed, steps, warmup)
        memory = measured.peak_memory(device)
        peaks.append({kind: measured.gemm_peak(device, dtype) for kind, dtype in dtypes.items()})
        flops = measured.count_flops(made, fixed)
        lost = measured.lost_layouts(made, fixed) if config.model.channels_last else None
    peak = {kind: max(once[kind] for once in peaks) for kind in dtypes}
    phases = loaded.median(dim=0).values
    rate = measured.rates(loaded, plan.batch_size)
    seconds = measured.Spread.of(loaded.sum(dim=1).tolist())
    return {
        "model": config.model.name,
        "parameters": plan.parameters,
        "precision": precision,
        "channels_last": config.model.channels_last,
        "image_size": fixed[0].images.shape[-1],
        "batch_size": plan.batch_size,
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "ranks": plan.world_size,
        "threads": plan.threads,
        "device": plan.device,
        "engine": engine_of(config, world).__name__,
        "torch": torch.__version__,
        "images_per_s": asdict(rate),
        "step_s": asdict(seconds),
        "phases": {
            name: {"s": one, "share": one / float(phases.sum())}
            for name, one in zip(measured.PHASES, phases.tolist(), strict=True)
        },
        "fixed_batch_images_per_s": asdict(measured.rates(repeated, plan.batch_size)),
        "of_fixed_batch": nearness,
        "step_flops": flops,
        "gemm_flops_per_s": peak,
        "utilisation": flops / plan.batch_size * rate.median / peak[precision.removesuffix("-master")],
        "peak_memory_bytes": memory,
        "layout_lost": lost,
        "micro_batches": {size: asdict(one) for size, one in tried.items()},
        "fastest_micro_batch": max(tried, key=lambda size: tried[size].median) if tried else None,
    }


def print_tables(found: dict[str, Any]) -> None:
    """The same for a person."""
    from rich.console import Console

    from distcnn.tracking.console import fields_table

    console = Console(highlight=False, soft_wrap=True)
    ranks = plural(found["ranks"], "rank")
    images_flops = found["step_flops"] / found["batch_size"]
    peaks = ", ".join(f"{kind} {rate / 1e9:,.0f}" for kind, rate in found["gemm_flops_per_s"].items())
    lost = found["layout_lost"]
    fields = {
        "batch": f"{found['micro_batch']} per rank × {ranks} × {found['accumulation']} accumulated = "
        f"{found['batch_size']}",
        "device": f"{found['device']}, {found['threads']} threads a rank, torch {found['torch']}",
        "images/s": _rate(found["images_per_s"]),
        "on a fixed batch": f"{_rate(found['fixed_batch_images_per_s'])}: with the data work "
        f"{found['of_fixed_batch']:.1%} of it",
        "FLOPs": f"{images_flops / 1e6:,.1f} M forward and backward, an image {found['image_size']} pixels wide",
        "GEMM peak": f"{peaks} GFLOP/s",
        "utilisation": f"{found['utilisation']:.1%} of the {found['precision'].removesuffix('-master')} peak",
        "peak memory": f"{found['peak_memory_bytes'] / 2**20:,.0f} MiB a rank",
        "channels_last": "off" if lost is None else "kept by every layer" if not lost else "lost:",
    }
    fields |= {f"  {i}": text for i, text in enumerate(lost or [], 1)}
    console.print(fields_table(f"a step of {found['model']} in {found['precision']}", fields))
    times = {name: f"{1000 * one['s']:9.2f} ms  {one['share']:6.1%}" for name, one in found["phases"].items()}
    console.print(
        fields_table("medians of its phases", {**times, "step": f"{1000 * found['step_s']['median']:9.2f} ms"})
    )
    if found["micro_batches"]:
        rows = {f"{size}": _rate(rate) for size, rate in found["micro_batches"].items()}
        console.print(fields_table("images/s by micro-batch", rows))
        console.print(f"fastest: --train.micro_batch {found['fastest_micro_batch']}", markup=False)


def _rate(spread: dict[str, float]) -> str:
    return f"{spread['median']:,.0f} ({spread['min']:,.0f} to {spread['max']:,.0f}, n = {spread['n']})"
