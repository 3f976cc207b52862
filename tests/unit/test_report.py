"""The report's arithmetic, and its colours."""

import re

import numpy as np
import pytest
from sklearn import metrics

from distcnn.report import figures
from distcnn.report.curves import POINTS, line, smooth
from distcnn.report.evaluation import per_class
from distcnn.report.page import HERE
from distcnn.runs.predictions import Predictions


def test_precision_recall_and_f1_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 4, 50), rng.integers(0, 4, 50)
    counts = np.zeros((5, 5), np.int64)  # no image of the last class, which is never predicted
    np.add.at(counts, (true, predicted), 1)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(true, predicted)
    *rows, absent = per_class("abcde", counts)
    for i, row in enumerate(rows):
        assert (row["precision"], row["recall"], row["f1"], row["images"]) == pytest.approx(
            (precision[i], recall[i], f1[i], support[i])
        )
    assert absent == {"name": "e", "images": 0, "precision": None, "recall": None, "f1": None}


def test_the_calibration_error_is_that_of_a_plain_computation():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.1, 1, 500).astype(np.float32)
    right = rng.uniform(size=500) < sure**2
    best = np.where(right, 1, 0)[:, None]
    found = Predictions(1, np.ones(500, np.int64), best, sure[:, None], np.array([]), np.array([]), ())
    error = 0.0
    for i in range(figures.BINS):
        inside = (sure * figures.BINS).astype(int) == i
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    figure, measured = figures.reliability(found)
    assert measured == pytest.approx(error, rel=1e-5)
    assert sum(count for count, _ in figure["traces"][0]["customdata"]) == 500


def test_a_long_curve_is_thinned_to_means_and_smoothing_forgets_its_start():
    steps = np.arange(100_000.0)
    curve = line(steps, steps * 2, "a", 0)
    assert len(curve["x"]) == POINTS
    assert curve["y"] == pytest.approx([2 * x for x in curve["x"]], rel=1e-4)
    assert smooth(np.full(300, 2.5)) == pytest.approx(np.full(300, 2.5))


@pytest.mark.parametrize("theme", [0, 1])
def test_every_text_stands_out_from_what_is_behind_it(theme):
    css = (HERE / "page.css").read_text()
    colours = dict(re.findall(r"(--\w+): (#[0-9a-f]{6})", css.split("prefers-color-scheme")[theme]))

    def luminance(name):
        channels = [int(colours[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a, b):
        high, low = sorted((luminance(a), luminance(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for behind in ("--page", "--panel"):
        assert min(contrast(text, behind) for text in ("--text", "--quiet", "--link")) >= 4.5
    assert min(contrast(f"--c{i}", "--page") for i in range(8)) >= 4.5
