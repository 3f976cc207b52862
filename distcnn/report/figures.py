"""Figures of the report, as plotly.js takes them; colours are indices into the page's light or dark palette."""

import html
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distcnn.runs.predictions import Predictions

# {"id", "title", "about", "traces", "layout"}; the legend has one button for each "group" of traces
Figure = dict[str, Any]
LARGEST_MATRIX = 120  # classes
BINS = 15  # of the reliability diagram


def label(text: str, length: int = 28) -> str:
    """Return a name as a plotly.js label: at most `length` long, and escaped, because plotly.js interprets tags."""
    shown = text if len(text) <= length else text[: length - 1] + "…"
    # Isolated, so that a right-to-left name does not reorder the text around it.
    return "\N{FIRST STRONG ISOLATE}" + html.escape(shown) + "\N{POP DIRECTIONAL ISOLATE}"


def confusion(counts: NDArray[np.int64], classes: Sequence[str]) -> Figure | None:
    """Return the confusion matrix, None for more than LARGEST_MATRIX classes. `counts` are [true, predicted]."""
    if len(classes) > LARGEST_MATRIX:
        return None
    names = [label(name) for name in classes]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    trace: dict[str, Any] = {
        "type": "heatmap", "z": rounded(shares), "x": names, "y": names, "text": counts.tolist(), "zmin": 0,
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
    about = "Rows are the true classes, columns the predicted ones; the shade is the fraction of the row."
    return {"id": "confusion", "title": "Confusion matrix", "about": about, "traces": [trace], "layout": layout}


def reliability(found: Predictions) -> tuple[Figure, float]:
    """Return accuracy over confidence in equal-width bins, and the expected calibration error.

    ECE = Σ over bins of images in the bin / images · |accuracy - mean confidence| (Guo et al. 2017, arXiv:1706.04599).
    """
    confidence = found.probabilities[:, 0].astype(np.float64)
    right = found.best[:, 0] == found.labels
    bins = np.clip((confidence * BINS).astype(np.int64), 0, BINS - 1)
    count, confidences, hits = (np.bincount(bins, weights, BINS) for weights in (None, confidence, right))
    used = count > 0
    accuracy, mean = hits[used] / count[used], confidences[used] / count[used]
    error = float(np.sum(count[used] / len(right) * np.abs(accuracy - mean)))
    bars = {
        "type": "bar", "x": rounded((np.flatnonzero(used) + 0.5) / BINS), "y": rounded(accuracy), "width": 1 / BINS,
        "customdata": [[int(n), float(m)] for n, m in zip(count[used], mean, strict=True)], "group": "accuracy",
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
    about = f"Expected calibration error {error:.2%}. Bars below the line: overconfident; above it: underconfident."
    figure = {"id": "reliability", "title": "Calibration", "about": about, "traces": [bars, ideal], "layout": layout}
    return figure, error


def rounded(values: ArrayLike) -> Any:
    """Return nested lists of numbers with five significant digits, to keep the file small."""
    array = np.asarray(values)
    number: Callable[[float], float] = lambda x: float(f"{x:.5g}")  # noqa: E731
    return [rounded(row) for row in array] if array.ndim > 1 else [number(x) for x in array.tolist()]
