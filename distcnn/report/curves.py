"""Curves of the logged numbers over the steps, of one run or of several overlaid."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distcnn.report.figures import Figure, label, rounded
from distcnn.runs.history import History
from distcnn.runs.records import Record

POINTS = 800  # per curve, at most


def curves(runs: Sequence[History]) -> list[Figure]:
    """Return figures of loss, accuracy, learning rate, images/s and, with several ranks, the slowest rank's delay."""
    several = len(runs) > 1
    loss, accuracy, rate, speed, spread = [], [], [], [], []
    for i, run in enumerate(runs):
        name, colours = label(run.name), (i, i) if several else (0, 1)
        train, test = run.of("train"), run.evaluations
        kept = [record for record in train if record.get("loss") is not None]
        steps, losses = _column(kept, "step"), _column(kept, "loss")
        groups = (name, name) if several else ("training", _split(test))
        if not several:
            loss.append(line(steps, losses, groups[0], colours[0], width=1) | {"opacity": 0.3, "hoverinfo": "skip"})
        loss.append(line(steps, smooth(losses), groups[0], colours[0]) | {"name": f"{name}: training, smoothed"})
        tested = [record for record in test if record.get("loss") is not None]
        dash = "dot" if several else "solid"
        tested_as = {"name": f"{name}: {_split(test)}", "mode": "lines+markers"}
        loss.append(
            line(_column(tested, "step"), _column(tested, "loss"), groups[1], colours[1], dash=dash) | tested_as
        )
        accuracy.append(line(_column(test, "step"), _column(test, "accuracy"), name, colours[1]) | tested_as)
        everywhere = _column(train, "step")
        rate.append(line(everywhere, _column(train, "lr"), name, i))
        speed.append(line(everywhere, _column(train, "images_per_s"), name, i))
        ranked = [record for record in train if "rank_spread" in record and "slowest_rank" in record]
        if ranked:
            slowest = [f"rank {record['slowest_rank']}" for record in ranked]
            spread.append(line(_column(ranked, "step"), _column(ranked, "rank_spread"), name, i, texts=slowest))
    marks = _restarts(runs[0]) if not several else []
    figures = [
        _figure("loss", "Loss", "Cross-entropy in nats. Training: each step's mean over the global batch.", loss),
        _figure("accuracy", "Accuracy", "On images that are not trained on.", accuracy, format=".1%"),
        _figure("lr", "Learning rate", "", rate, zero=True),
        _figure(
            "speed", "Images per second", "Over all ranks, between log points, without evaluations.", speed, zero=True
        ),
    ]
    if spread:
        about = (
            "How much longer the slowest rank was busy than the fastest, without time spent waiting for other ranks."
        )
        figures.append(_figure("spread", "Slowest rank", about, spread, format=".0%", zero=True))
    for figure in figures:
        figure["layout"] |= (marks and {"shapes": [m[0] for m in marks], "annotations": [m[1] for m in marks]}) or {}
    return figures


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an exponential moving average over a fiftieth of the curve, bias-corrected for its start at zero."""
    decay = 1 - 1 / max(1.0, len(values) / 50)
    out, average = np.empty_like(values), 0.0
    for i, value in enumerate(values):
        average = decay * average + (1 - decay) * value
        out[i] = average / (1 - decay ** (i + 1))
    return out


def line(
    steps: NDArray[np.float64],
    values: NDArray[np.float64],
    group: str,
    colour: int,
    *,
    texts: Sequence[str] | None = None,
    width: float = 2,
    dash: str = "solid",
) -> dict[str, Any]:
    """Return a trace of at most `POINTS` points; a longer one is cut into equal parts, each drawn as its mean."""
    if len(steps) > POINTS:
        cuts = np.linspace(0, len(steps), POINTS + 1).astype(np.int64)[:-1]
        counts = np.diff([*cuts, len(steps)])
        steps, values = np.add.reduceat(steps, cuts) / counts, np.add.reduceat(values, cuts) / counts
        texts = texts and [texts[i] for i in cuts]
    trace = {
        "type": "scatter", "mode": "lines", "x": rounded(steps), "y": rounded(values), "group": group,
        "colour": colour, "name": group, "line": {"width": width, "dash": dash},
    }  # fmt: skip
    return trace | ({"text": list(texts)} if texts else {})


def _figure(
    name: str, title: str, about: str, traces: list[dict[str, Any]], *, format: str = "", zero: bool = False
) -> Figure:
    layout = {
        "xaxis": {"title": {"text": "step"}, "rangemode": "tozero"},
        "yaxis": {"tickformat": format, "rangemode": "tozero" if zero else "normal"},
    }
    return {"id": name, "title": title, "about": about, "traces": traces, "layout": layout}


def _restarts(run: History) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return a vertical line and its label for every resume."""
    steps = sorted({record["step"] for record in run.starts if record["event"] == "resumed"})
    line = {"type": "line", "y0": 0, "y1": 1, "yref": "paper", "line": {"dash": "dash", "width": 1}}
    text = {
        "y": 1, "yref": "paper", "text": "resumed", "showarrow": False, "textangle": -90, "xanchor": "right",
        "yanchor": "top", "font": {"size": 10},
    }  # fmt: skip
    return [(line | {"x0": step, "x1": step}, text | {"x": step}) for step in steps]


def _split(evaluations: Sequence[Record]) -> str:
    return "hold-out" if evaluations and evaluations[-1].get("split") == "holdout" else "test"


def _column(records: Sequence[Record], key: str) -> NDArray[np.float64]:
    return np.array([record[key] for record in records], np.float64)
