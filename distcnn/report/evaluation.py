"""The last evaluation of a run: classes, confusion matrix, calibration and most confident errors."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distcnn.errors import InputError
from distcnn.report.figures import Figure, confusion, reliability
from distcnn.runs.history import History
from distcnn.runs.predictions import PREDICTIONS, Predictions, load_predictions
from distcnn.runs.records import Record

_SHOWN_ERRORS = 24  # at most


def evaluation(run: History) -> tuple[dict[str, Any], list[Figure]]:
    """Return the template's variables and the figures; both are empty if the run has no evaluation.

    Data that is damaged or inconsistent is named under "problem".
    """
    if not run.evaluations:
        return {}, []
    last = run.evaluations[-1]
    classes, counts = _counts(last)
    if not classes:
        return {"problem": "The last evaluation has no confusion matrix that fits its classes."}, []
    matrix = confusion(counts, classes)
    figures = [matrix] if matrix else []
    found = {"classes": per_class(classes, counts), "confused": _confused(classes, counts), "evaluated": last}
    try:
        predictions = load_predictions(run.folder / PREDICTIONS)
    except InputError as error:
        return found | {"problem": str(error)}, figures
    if predictions is None or predictions.step != last["step"]:
        return found, figures
    if not all(((named >= 0) & (named < len(classes))).all() for named in (predictions.best, predictions.labels)):
        return found | {"problem": f"{run.folder / 'predictions.npz'}: its classes are not those of the run"}, figures
    diagram, _ = reliability(predictions)
    return found | {"errors": _errors(predictions, classes)}, [*figures, diagram]


def _counts(evaluation: Record) -> tuple[list[str], NDArray[np.int64]]:
    """Return the classes and [true, predicted] counts of an evaluation; no classes if the two do not fit."""
    classes, rows = [*evaluation.get("per_class", {})], evaluation.get("confusion", [])
    try:
        counts = np.array(rows, np.int64)
    except (ValueError, TypeError, OverflowError):
        counts = np.zeros((0, 0), np.int64)
    if counts.shape != (len(classes), len(classes)) or (counts < 0).any():
        return [], counts
    return classes, counts


def per_class(classes: Sequence[str], counts: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return each class's number of images, precision, recall and F1, None for a ratio of 0/0.

    `counts` are [true, predicted].
    """
    hits, true, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)

    def ratio(a: int, b: int) -> float | None:
        return float(a / b) if b else None

    return [
        {
            "name": name, "images": int(true[i]), "precision": ratio(hits[i], predicted[i]),
            "recall": ratio(hits[i], true[i]), "f1": ratio(2 * hits[i], true[i] + predicted[i]),
        }
        for i, name in enumerate(classes)
    ]  # fmt: skip


def _confused(classes: Sequence[str], counts: NDArray[np.int64]) -> list[tuple[str, str, int]]:
    """Return the most frequently confused (true, predicted) pairs, with their counts."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:8]
    pairs = [divmod(int(cell), len(classes)) for cell in order]
    return [(classes[i], classes[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


def _errors(found: Predictions, classes: Sequence[str]) -> list[dict[str, Any]]:
    shown = []
    for place, row in enumerate(found.mistakes[:_SHOWN_ERRORS].tolist()):
        pairs = zip(found.best[row].tolist(), found.probabilities[row].tolist(), strict=True)
        shown.append({
            "image": _png(found.thumbnails[place]), "true": classes[found.labels[row]],
            "file": found.files[place] if found.files else f"image {row}",
            "predicted": [(classes[index], probability) for index, probability in pairs][:3],
        })  # fmt: skip
    return shown


def _png(pixels: NDArray[np.uint8]) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode("ascii")
