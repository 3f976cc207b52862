"""What the report draws, as plotly.js takes it; colours are numbers of the page's palette, light or dark."""

import html
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distcnn.runs.predictions import Predictions

# {"id", "title", "about", "traces", "layout"}; each trace has a "group", one button of the legend
Figure = dict[str, Any]
LARGEST_MATRIX = 120  # classes
BINS = 15  # of the reliability diagram


def label(text: str, length: int = 28) -> str:
    """A name as plotly.js takes it: it reads some tags in texts, and a long one would leave no room for the plot."""
    shown = text if len(text) <= length else text[: length - 1] + "…"
    # Isolated, so that a name written from right to left does not turn around what stands beside it.
    return "\N{FIRST STRONG ISOLATE}" + html.escape(shown) + "\N{POP DIRECTIONAL ISOLATE}"


def confusion(counts: NDArray[np.int64], classes: Sequence[str]) -> Figure | None:
    """The confusion matrix; None where there are too many classes to see one."""
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
        "type": "bar", "x": rounded((np.flatnonzero(some) + 0.5) / BINS), "y": rounded(accuracy), "width": 1 / BINS,
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
    about = f"Expected calibration error {error:.2%}. Bars below the line: overconfident; above it: underconfident."
    figure = {"id": "reliability", "title": "Calibration", "about": about, "traces": [bars, ideal], "layout": layout}
    return figure, error


def rounded(values: ArrayLike) -> Any:
    """Nested lists of five digits: more would only make the file larger."""
    array = np.asarray(values)
    number: Callable[[float], float] = lambda x: float(f"{x:.5g}")  # noqa: E731
    return [rounded(row) for row in array] if array.ndim > 1 else [number(x) for x in array.tolist()]
