"""Everything that `distcnn bench step` measures: the steps of a run, and the machine's peak."""

from dataclasses import asdict, replace
from typing import Any

import torch

from distcnn.bench.measure import (
    PHASES,
    Spread,
    Steps,
    alternate,
    count_flops,
    gemm_peak,
    images_per_s,
    lost_layouts,
    peak_memory,
    try_micro_batches,
)
from distcnn.config.schema import CheckpointConfig, Config
from distcnn.config.settings import Settings
from distcnn.distributed.world import World
from distcnn.errors import InputError
from distcnn.training.build import checked, engine_of
from distcnn.training.run import Run


def checked_config(settings: Settings, world: World, *, micro_batches: bool) -> Config:
    """Check the run to be measured. Raises InputError."""
    config = checked(settings, world)
    if micro_batches and config.model.compile:
        raise InputError(
            "--micro-batches, model.compile = true: each size would be compiled again; try sizes one by one"
        )
    return config


def measure_step(config: Config, world: World, steps: int, warmup: int, *, micro_batches: bool) -> dict[str, Any]:
    """Measure the run as configured; return what `distcnn bench step --json` prints. A collective."""
    # Never resumed, and all steps of the same size.
    config = replace(config, checkpoint=CheckpointConfig(), train=replace(config.train, drop_last=True))
    trained = Run(config, world)  # its StopRequest gets no signal, but its all-reduce is part of a step
    device, plan, precision = trained.device, trained.plan, config.train.precision
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if precision == "fp16":
        dtypes["fp16"] = torch.float16
    with trained.connected():
        trained.stop.begin(config.train.timeout)
        tried = try_micro_batches(trained) if micro_batches else {}
        peaks = [{kind: gemm_peak(device, dtype) for kind, dtype in dtypes.items()}]
        made = Steps(trained)
        fixed = made.batches()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        loaded, repeated, efficiency = alternate(made, fixed, steps, warmup)
        memory = peak_memory(device)
        peaks.append({kind: gemm_peak(device, dtype) for kind, dtype in dtypes.items()})
        flops = count_flops(made, fixed)
        lost = lost_layouts(made, fixed) if config.model.channels_last else None
    peak = {kind: max(once[kind] for once in peaks) for kind in dtypes}
    phases = loaded.median(dim=0).values
    rate = images_per_s(loaded, plan.batch_size)
    seconds = Spread.of(loaded.sum(dim=1).tolist())
    return {
        "model": config.model.name,
        "parameters": trained.workload.parameters,
        "precision": precision,
        "channels_last": config.model.channels_last,
        "image_size": fixed[0].images.shape[-1],
        "batch_size": plan.batch_size,
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "ranks": plan.world_size,
        "threads": trained.workload.threads,
        "device": trained.workload.device,
        "engine": engine_of(config, world).__name__,
        "torch": torch.__version__,
        "images_per_s": asdict(rate),
        "step_s": asdict(seconds),
        "phases": {
            name: {"s": one, "share": one / float(phases.sum())}
            for name, one in zip(PHASES, phases.tolist(), strict=True)
        },
        "fixed_batch_images_per_s": asdict(images_per_s(repeated, plan.batch_size)),
        "of_fixed_batch": efficiency,
        "step_flops": flops,
        "gemm_flops_per_s": peak,
        "utilisation": flops / plan.batch_size * rate.median / peak[precision.removesuffix("-master")],
        "peak_memory_bytes": memory,
        "layout_lost": lost,
        "micro_batches": {size: asdict(one) for size, one in tried.items()},
        "fastest_micro_batch": max(tried, key=lambda size: tried[size].median) if tried else None,
    }
