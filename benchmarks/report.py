"""docs/results.json → docs/results.md and docs/results.png: python -m benchmarks.report [--results FILE]."""

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import pipeline, trials
from benchmarks.scenarios import LABELS, SCENARIOS

Rates = Mapping[str, Sequence[float]]  # images/s of each trial, by contender
OURS = ("distcnn bf16", "distcnn fp32")
OVERHEADS = {
    "saving": "resnet9, batch 128, bf16: a checkpoint every 20 steps against none",
    "tracking": "simple_cnn, batch 512, bf16: W&B offline, console, a log line a step, and checkpoints each epoch, "
    "against none of these",
}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown; all but the first column to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def rate_table(rates: Rates, labels: Mapping[str, str]) -> str:
    """images/s of each contender, and how many times as fast each of ours is."""
    ours = [name for name in OURS if name in rates]
    rows = [
        [labels[name], trials.spread(values), *[trials.spread(trials.ratios(rates[one], values), 2) for one in ours]]
        for name, values in rates.items()
    ]
    return table(["", "images/s", *[f"{labels[one]} ÷ it" for one in ours]], rows)


def losses(rates: Rates, labels: Mapping[str, str]) -> str:
    """A sentence on every contender that one of ours does not beat. Our fp32 is not held against their bf16."""
    lost = []
    for one, name in product((one for one in OURS if one in rates), rates):
        if name.startswith(("distcnn", "fixed")) or (one.endswith("fp32") and name.endswith("bf16")):
            continue
        ratio = statistics.median(trials.ratios(rates[one], rates[name]))
        if ratio < 1:
            lost.append(f"{labels[one]} to {labels[name]} ({ratio:.2f} ×)")
    return "Where distcnn loses: " + ("; ".join(lost) or "nowhere in this table") + ".\n"


def peers_section(parts: dict[str, Any]) -> Iterator[str]:
    yield "## Training steps\n"
    yield (
        "One process, the same network, global batch, augmentation (flip, crop after padding by 4, normalise), "
        "optimizer and images. Whole steps after a warm-up; distcnn's are those of `distcnn train` with its log and "
        "console.\n"
    )
    for name, found in parts.items():
        rates = found["images_per_s"]
        yield f"### {SCENARIOS[name].title}\n"
        yield rate_table(rates, LABELS)
        yield losses(rates, LABELS)
        if found["probe"]:
            probed = "; ".join(f"{count}: {trials.spread(values)}" for count, values in found["probe"].items())
            yield f"Workers of the peers' DataLoader: {found['workers']}, the best of (images/s) {probed}.\n"
        for precision, given in found["settings"].items():
            settings = ", ".join(f"`{key}: {value}`" for key, value in given.items())
            yield f"distcnn, {precision}: {settings}.\n"
        yield f"{found['steps']} steps a trial. " + made_by(found["made"], rates)


def pipeline_section(parts: dict[str, Any]) -> Iterator[str]:
    found = parts["alone"]
    rates = found["images_per_s"]
    yield "## The input pipeline alone\n"
    yield f"Flip, crop after padding by 4, normalise, channels_last; batches of {pipeline.BATCH}.\n"
    yield rate_table(rates, pipeline.LABELS)
    yield losses(rates, pipeline.LABELS)
    yield made_by(found["made"], rates)


def overhead_section(parts: dict[str, Any]) -> Iterator[str]:
    yield "## What the rest costs\n"
    for part, what in OVERHEADS.items():
        if part not in parts:
            continue
        found = parts[part]
        steps = found["steps_s"]
        cost = [100 * (ratio - 1) for ratio in trials.ratios(steps["on"], steps["off"])]
        yield f"{what}; in turn within each run, {found['blocks']} blocks of {found['block']} steps each:\n"
        yield table(["with, s", "without, s", "cost, %"], [
            [*(trials.spread(steps[side], 1) for side in ("on", "off")), trials.spread(cost, 1)]
        ])  # fmt: skip
        yield (
            f"Measured directly in the same runs: the training was held up for {trials.spread(found['held_s'], 2)} s, and "
            f"{trials.spread(found['beside_s'], 2)} s of processor time were spent beside it, the start included.\n"
        )
        yield made_by(found["made"], steps)
    if "startup" in parts:
        seconds = parts["startup"]["seconds"]
        ratio = trials.ratios(seconds["distcnn"], seconds["plain"])
        yield table(["from the start of the process", "seconds"], [
            ["`distcnn train configs/simple_cnn.yaml` to the end of the first step", trials.spread(seconds["distcnn"], 2)],
            ["a plain script: torch, torchvision, the same network, a step on random numbers", trials.spread(seconds["plain"], 2)],
            ["ratio", trials.spread(ratio, 2)],
            ["`distcnn --help`", trials.spread(seconds["help"], 2)],
        ])  # fmt: skip
        yield made_by(parts["startup"]["made"], seconds)


def made_by(made: dict[str, Any], values: Rates) -> str:
    """How a table came to be; n is counted, not claimed."""
    n = min(map(len, values.values()))
    return (
        f"`{made['command']}`, n = {n}, {made['threads']} threads. {made['machine']}, load average at the end "
        f"{made['load_at_end']}. {made['versions']}.\n"
    )


SECTIONS = {"peers": peers_section, "pipeline": pipeline_section, "overhead": overhead_section}


def text(results: dict[str, Any]) -> str:
    """The whole page."""
    parts = [
        "# Results side by side\n",
        "Made by `make bench DIR=DIR`. Each trial is a process of its own; the contenders take turns (A B C A B C …). "
        "Figures are medians with the smallest and the largest; a ratio is taken within each round, so that a machine "
        "that slows down meets both sides.\n",
        "![images/s](results.png)\n",
    ]
    for name, section in SECTIONS.items():
        if name in results:
            parts += section(results[name])
    return "\n".join(parts)


def plot(results: dict[str, Any], path: Path) -> None:
    """One panel a table of rates: medians as bars, smallest and largest as whiskers."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    panels = [
        (SCENARIOS[name].title, found["images_per_s"], LABELS) for name, found in results.get("peers", {}).items()
    ]
    if "pipeline" in results:
        panels.append(("the input pipeline alone", results["pipeline"]["alone"]["images_per_s"], pipeline.LABELS))
    if not panels:
        return
    heights = [len(rates) + 1.5 for _, rates, _ in panels]
    figure, axes = plt.subplots(
        len(panels), figsize=(9, 0.26 * sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis, (title, rates, labels) in zip(axes[:, 0], panels, strict=True):
        names = [*reversed(rates)]
        middles = [statistics.median(rates[name]) for name in names]
        below = [middle - min(rates[name]) for name, middle in zip(names, middles, strict=True)]
        above = [max(rates[name]) - middle for name, middle in zip(names, middles, strict=True)]
        colours = ["#d95f02" if name.startswith("distcnn") else "#8da0b8" for name in names]
        axis.barh([labels[name] for name in names], middles, xerr=[below, above], color=colours, ecolor="#333333")
        axis.set_title(f"{title}, images/s", fontsize=9, loc="left")
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=trials.RESULTS)
    results_path = parser.parse_args().results
    results = json.loads(results_path.read_text())
    results_path.with_suffix(".md").write_text(text(results), encoding="utf-8")
    plot(results, results_path.with_suffix(".png"))
    print(results_path.with_suffix(".md"))


if __name__ == "__main__":
    main()
