"""What the report draws, as plotly.js takes it; colours are numbers of the page's palette, light or dark."""

import html
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distcnn.runs.history import History
from distcnn.runs.predictions import Predictions
from distcnn.runs.records import Record

Figure = dict[
    str, Any
]  # {"id", "title", "about", "traces", "layout"}; each trace has a "group", one button of the legend
POINTS = 800  # of a curve, at most
LARGEST_MATRIX = 120  # classes
BINS = 15  # of the reliability diagram


def label(text: str, length: int = 28) -> str:
    """A name as plotly.js takes it: it reads some tags in texts, and a long one would leave no room for the plot."""
    shown = text if len(text) <= length else text[: length - 1] + "…"
    # Isolated, so that a name written from right to left does not turn around what stands beside it.
    return "\N{FIRST STRONG ISOLATE}" + html.escape(shown) + "\N{POP DIRECTIONAL ISOLATE}"


def curves(runs: Sequence[History]) -> list[Figure]:
    """Loss, accuracy, learning rate, images/s and, with several ranks, their spread; over the steps."""
    several = len(runs) > 1
    loss, accuracy, rate, speed, spread = [], [], [], [], []
    for i, run in enumerate(runs):
        name, colours = label(run.name), (i, i) if several else (0, 1)
        train, test = run.of("train"), run.evaluations
        kept = [record for record in train if record.get("loss") is not None]
        steps, losses = _column(kept, "step"), _column(kept, "loss")
        groups = (name, name) if several else ("training", _split(test))
        if not several:
            loss.append(_line(steps, losses, groups[0], colours[0], width=1) | {"opacity": 0.3, "hoverinfo": "skip"})
        loss.append(_line(steps, smooth(losses), groups[0], colours[0]) | {"name": f"{name}: training, smoothed"})
        tested = [record for record in test if record.get("loss") is not None]
        dash = "dot" if several else "solid"
        tested_as = {"name": f"{name}: {_split(test)}", "mode": "lines+markers"}
        loss.append(
            _line(_column(tested, "step"), _column(tested, "loss"), groups[1], colours[1], dash=dash) | tested_as
        )
        accuracy.append(_line(_column(test, "step"), _column(test, "accuracy"), name, colours[1]) | tested_as)
        everywhere = _column(train, "step")
        rate.append(_line(everywhere, _column(train, "lr"), name, i))
        speed.append(_line(everywhere, _column(train, "images_per_s"), name, i))
        ranked = [record for record in train if "rank_spread" in record and "slowest_rank" in record]
        if ranked:
            slowest = [f"rank {record['slowest_rank']}" for record in ranked]
            spread.append(_line(_column(ranked, "step"), _column(ranked, "rank_spread"), name, i, texts=slowest))
    marks = _restarts(runs[0]) if not several else []
    figures = [
        _figure("loss", "Loss", "Cross-entropy in nats. Training: each step's mean over the global batch.", loss),
        _figure("accuracy", "Accuracy", "Of the images that training never sees.", accuracy, format=".1%"),
        _figure("lr", "Learning rate", "", rate, zero=True),
        _figure(
            "speed", "Images per second", "Over all ranks, between log points; without evaluations.", speed, zero=True
        ),
    ]
    if spread:
        about = "How much longer the slowest rank was busy than the fastest; time spent waiting for others left out."
        figures.append(_figure("spread", "Slowest rank", about, spread, format=".0%", zero=True))
    for figure in figures:
        figure["layout"] |= (marks and {"shapes": [m[0] for m in marks], "annotations": [m[1] for m in marks]}) or {}
    return figures


def confusion(counts: NDArray[np.int64], classes: Sequence[str]) -> Figure | None:
    """The confusion matrix; None where there are too many classes to see one."""
    if len(classes) > LARGEST_MATRIX:
        return None
    names = [label(name) for name in classes]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    trace: dict[str, Any] = {
        "type": "heatmap", "z": _rounded(shares), "x": names, "y": names, "text": counts.tolist(), "zmin": 0,
        "zmax": 1, "showscale": False, "scale": True, "xgap": 1, "ygap": 1,
        "hovertemplate": "true %{y}<br>predicted %{x}<br>%{text} images, %{z:.1%} of the class<extra></extra>",
    }  # fmt: skip
    if len(classes) <= 20:
        trace |= {"texttemplate": "%{text}", "textfont": {"size": 11}}
    axis = {"type": "category", "tickfont": {"size": 11}, "showgrid": False, "automargin": True}
    layout = {
        "xaxis": axis | {"title": {"text": "predicted"}, "tickangle": -45},
        "yaxis": axis | {"title": {"text": "true"}, "autorange": "reversed"},
        "height": int(np.clip(220 + 30 * len(classes), 360, 900)),
        "hovermode": "closest",
    }
    about = "Rows are the true classes, columns the predicted ones; the shade is the share of the row."
    return {"id": "confusion", "title": "Confusion matrix", "about": about, "traces": [trace], "layout": layout}


def reliability(found: Predictions) -> tuple[Figure, float]:
    """Accuracy against confidence in equal bins of the latter, and the expected calibration error.

    ECE = Σ share of the images in a bin · |accuracy - mean confidence there| (Guo et al. 2017, arXiv:1706.04599).
    """
    confidence = found.probabilities[:, 0].astype(np.float64)
    right = found.best[:, 0] == found.labels
    place = np.clip((confidence * BINS).astype(np.int64), 0, BINS - 1)
    count, sure, hits = (np.bincount(place, weights, BINS) for weights in (None, confidence, right))
    some = count > 0
    accuracy, mean = hits[some] / count[some], sure[some] / count[some]
    error = float(np.sum(count[some] / len(right) * np.abs(accuracy - mean)))
    bars = {
        "type": "bar", "x": _rounded((np.flatnonzero(some) + 0.5) / BINS), "y": _rounded(accuracy), "width": 1 / BINS,
        "customdata": [[int(n), float(m)] for n, m in zip(count[some], mean, strict=True)], "group": "accuracy",
        "colour": 0, "name": "accuracy",
        "hovertemplate": "%{customdata[0]} images, confidence %{customdata[1]:.1%}: accuracy %{y:.1%}<extra></extra>",
    }  # fmt: skip
    ideal = {
        "type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "group": "perfectly calibrated", "colour": 1,
        "line": {"dash": "dot"}, "hoverinfo": "skip",
    }  # fmt: skip
    axis = {"range": [0, 1], "tickformat": ".0%"}
    layout = {
        "xaxis": axis | {"title": {"text": "confidence (probability of the predicted class)"}},
        "yaxis": axis | {"title": {"text": "accuracy"}},
        "hovermode": "closest",
    }
    about = f"Expected calibration error {error:.2%}. Bars below the line: too sure of itself; above it: too timid."
    figure = {"id": "reliability", "title": "Calibration", "about": about, "traces": [bars, ideal], "layout": layout}
    return figure, error


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """An exponential moving average over a fiftieth of the curve, its start corrected for what came before it."""
    decay = 1 - 1 / max(1.0, len(values) / 50)
    out, average = np.empty_like(values), 0.0
    for i, value in enumerate(values):
        average = decay * average + (1 - decay) * value
        out[i] = average / (1 - decay ** (i + 1))
    return out


def _line(
    steps: NDArray[np.float64],
    values: NDArray[np.float64],
    group: str,
    colour: int,
    *,
    texts: Sequence[str] | None = None,
    width: float = 2,
    dash: str = "solid",
) -> dict[str, Any]:
    if len(steps) > POINTS:  # means of equal parts; of texts, the first one of each
        cuts = np.linspace(0, len(steps), POINTS + 1).astype(np.int64)[:-1]
        counts = np.diff([*cuts, len(steps)])
        steps, values = np.add.reduceat(steps, cuts) / counts, np.add.reduceat(values, cuts) / counts
        texts = texts and [texts[i] for i in cuts]
    trace = {
        "type": "scatter", "mode": "lines", "x": _rounded(steps), "y": _rounded(values), "group": group,
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
    """A line and its text for every resume."""
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


def _rounded(values: ArrayLike) -> Any:
    """Nested lists of five digits: more would only make the file larger."""
    array = np.asarray(values)
    number: Callable[[float], float] = lambda x: float(f"{x:.5g}")  # noqa: E731
    return [_rounded(row) for row in array] if array.ndim > 1 else [number(x) for x in array.tolist()]
