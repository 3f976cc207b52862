"""The figures of `distcnn bench step` as tables."""

from typing import Any

from rich.console import Console

from distcnn.text import plural
from distcnn.tracking.console import fields_table


def print_tables(found: dict[str, Any]) -> None:
    """Print the result of `measure_step`."""
    console = Console(highlight=False, soft_wrap=True)
    ranks = plural(found["ranks"], "rank")
    images_flops = found["step_flops"] / found["batch_size"]
    peaks = ", ".join(f"{kind} {rate / 1e9:,.0f}" for kind, rate in found["gemm_flops_per_s"].items())
    lost = found["layout_lost"]
    fields = {
        "batch": f"{found['micro_batch']} per rank × {ranks} × {found['accumulation']} accumulated = "
        f"{found['batch_size']}",
        "device": f"{found['device']}, {found['threads']} threads per rank, torch {found['torch']}",
        "images/s": _rate(found["images_per_s"]),
        "on a fixed batch": f"{_rate(found['fixed_batch_images_per_s'])}; with the data work "
        f"{found['of_fixed_batch']:.1%} of it",
        "FLOPs": f"{images_flops / 1e6:,.1f} M per image of {found['image_size']} pixels, forward and backward",
        "GEMM peak": f"{peaks} GFLOP/s",
        "utilisation": f"{found['utilisation']:.1%} of the {found['precision'].removesuffix('-master')} peak",
        "peak memory": f"{found['peak_memory_bytes'] / 2**20:,.0f} MiB per rank",
        "channels_last": "off" if lost is None else "kept by every layer" if not lost else "lost:",
    }
    fields |= {f"  {i}": text for i, text in enumerate(lost or [], 1)}
    console.print(fields_table(f"a step of {found['model']} in {found['precision']}", fields))
    times = {name: f"{1000 * one['s']:9.2f} ms  {one['share']:6.1%}" for name, one in found["phases"].items()}
    console.print(
        fields_table("median times of its phases", {**times, "step": f"{1000 * found['step_s']['median']:9.2f} ms"})
    )
    if found["micro_batches"]:
        rows = {f"{size}": _rate(rate) for size, rate in found["micro_batches"].items()}
        console.print(fields_table("images/s by micro-batch", rows))
        console.print(f"fastest: --train.micro_batch {found['fastest_micro_batch']}", markup=False)


def _rate(spread: dict[str, float]) -> str:
    return f"{spread['median']:,.0f} ({spread['min']:,.0f} to {spread['max']:,.0f}, n = {spread['n']})"
