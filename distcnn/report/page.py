"""The page: what stands in it, and the template filled in. Every text that a run can name is escaped there."""

import base64
import io
import json
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from distcnn import __version__, text
from distcnn.config.tree import flatten
from distcnn.errors import InputError
from distcnn.files import atomic_file
from distcnn.report import figures
from distcnn.runs.history import History
from distcnn.runs.predictions import Predictions
from distcnn.runs.records import Record

HERE = Path(__file__).parent
_MISTAKES = 24
_STATES = {
    "running": "is running", "done": "ran to its end", "preempted": "was preempted", "interrupted": "was interrupted",
    "failed": "failed",
    "died": "ended without a word: killed, or its machine went away", "unreadable": "has a log that cannot be read",
}  # fmt: skip


def missing() -> str:
    """Say what has to be installed first; "" if nothing has."""
    return text.missing("report", "plotly", "jinja2")


def page(runs: Sequence[History]) -> str:
    """The whole HTML text. Raises InputError where none of the runs has anything to show."""
    if not any(run.records for run in runs):
        raise InputError([f"{run.folder}: {'; '.join((*run.damage, *_empty(run)))}" for run in runs])
    import jinja2

    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True)
    environment.filters["percent"] = lambda value: "–" if value is None else f"{value:.2%}"
    shown = figures.curves(runs)
    alone = _alone(runs[0], shown) if len(runs) == 1 else {}
    compared = [run for run in runs if run.settings]
    return environment.get_template("page.html").render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        states=[(run.name, _STATES[run.state], run.reason) for run in runs],
        damaged=[(run.name, "; ".join(run.damage)) for run in runs if run.damage],
        headlines=_headlines(runs[0]) if len(runs) == 1 else [],
        table=[_row(run) for run in runs],
        differing=differing([run.settings for run in compared]),
        names=[run.name for run in compared],
        figures=[{key: figure[key] for key in ("id", "title", "about")} for figure in shown],
        data=json.dumps(shown, separators=(",", ":")).replace("<", "\\u003c"),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
        plotly=_plotly(),
        version=__version__,
        **alone,
    )


def _empty(run: History) -> tuple[str, ...]:
    return () if run.state == "unreadable" else ("nothing is logged yet",)


def write_page(runs: Sequence[History], output: Path) -> int:
    """Write it, whole or not at all; returns its size in characters. Raises InputError, OSError."""
    html = page(runs)
    with atomic_file(output) as aside:
        aside.write_text(html, encoding="utf-8", errors="replace")
    return len(html)


def differing(settings: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """(dotted key, its value in each) of the settings that are not the same in all."""
    flat = [flatten(tree) for tree in settings]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = [(key, [json.dumps(one[key]) if key in one else "–" for one in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1 and key != "name"]


def _alone(run: History, shown: list[figures.Figure]) -> dict[str, Any]:
    """What is shown of a single run only; adds its figures to `shown`."""
    found: dict[str, Any] = {
        "events": [_event(record) for record in run.of("event")],
        "config": yaml.safe_dump(run.settings, sort_keys=False, allow_unicode=True) if run.settings else "",
        "environment": _environment(run),
    }
    if not run.evaluations:
        return found
    last = run.evaluations[-1]
    classes, counts = _counts(last)
    if not classes:
        return found | {"problem": "The last evaluation holds no confusion matrix that fits its classes."}
    matrix = figures.confusion(counts, classes)
    if matrix:
        shown.append(matrix)
    found |= {"classes": _per_class(classes, counts), "confused": _confused(classes, counts), "evaluated": last}
    try:
        predictions = run.predictions()
    except InputError as error:
        return found | {"problem": str(error)}
    if predictions is None or predictions.step != last["step"]:
        return found
    if not all(((named >= 0) & (named < len(classes))).all() for named in (predictions.best, predictions.labels)):
        return found | {"problem": f"{run.folder / 'predictions.npz'}: of other classes than those of the run"}
    shown.append(figures.reliability(predictions)[0])
    found["mistakes"] = _mistakes(predictions, classes)
    return found


def _counts(evaluation: Record) -> tuple[list[str], NDArray[np.int64]]:
    """The classes and [true, predicted] counts of an evaluation; no class where the two do not fit each other."""
    classes, rows = [*evaluation.get("per_class", {})], evaluation.get("confusion", [])
    try:
        counts = np.array(rows, np.int64)
    except (ValueError, TypeError, OverflowError):
        counts = np.zeros((0, 0), np.int64)
    if counts.shape != (len(classes), len(classes)) or (counts < 0).any():
        return [], counts
    return classes, counts


def _headlines(run: History) -> list[tuple[str, str, str]]:
    """(what, number, beside it)."""
    found = []
    plan, best = run.plan, run.best
    if best is not None:
        last = run.evaluations[-1]
        found.append(("accuracy", f"{last['accuracy']:.2%}", f"{last['correct']:,} of {last['total']:,}"))
        if best["accuracy"] > last["accuracy"]:
            found.append(("best", f"{best['accuracy']:.2%}", f"after step {best['step']:,}"))
        if last.get("loss") is not None:
            found.append((f"{last.get('split', 'test')} loss", f"{last['loss']:.4f}", "nats an image"))
    done = f"of {plan['steps']:,}" if "steps" in plan else ""
    found.append(("steps", f"{run.step:,}", done))
    if run.images_per_s is not None:
        found.append(("images/s", f"{run.images_per_s:,.0f}", "of all ranks, median"))
    events = [record for record in run.of("event") if "time" in record]
    if len(events) > 1:
        span = timedelta(seconds=round(events[-1]["time"] - events[0]["time"]))
        resumed = len(run.starts) - 1
        found.append(("time", f"{span}", f"{text.plural(resumed, 'resume')} within" if resumed else ""))
    if {"world_size", "device", "parameters"} <= plan.keys():
        ranks = f"{text.plural(plan['world_size'], 'rank')}, {plan['device']}"
        found.append(("parameters", f"{plan['parameters']:,}", ranks))
    return found


def _row(run: History) -> dict[str, Any]:
    last, best = run.evaluations[-1] if run.evaluations else None, run.best
    return {
        "name": run.name, "state": run.state, "steps": run.step, "accuracy": last and last["accuracy"],
        "best": best and best["accuracy"], "loss": last and last.get("loss"),
        "speed": run.images_per_s,
    }  # fmt: skip


def _event(record: dict[str, Any]) -> tuple[str, int, str, str]:
    when = datetime.fromtimestamp(record["time"], timezone.utc) if "time" in record else None
    time = f"{when:%Y-%m-%d %H:%M:%S} UTC" if when else "–"
    return time, record["step"], str(record["event"]).replace("_", " "), str(record.get("message", ""))


def _environment(run: History) -> list[tuple[str, str]]:
    known = {key: value for key, value in run.environment.items() if key not in ("plan", "versions")}
    plan = {key: value for key, value in run.plan.items() if key != "forward_flops"}
    versions = run.environment.get("versions", {})
    return [(str(key), str(value)) for key, value in (known | versions | plan).items()]


def _per_class(classes: Sequence[str], counts: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Precision, recall and F1; None where nothing is to be divided by."""
    hits, true, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)

    def share(a: int, b: int) -> float | None:
        return float(a / b) if b else None

    return [
        {
            "name": name, "images": int(true[i]), "precision": share(hits[i], predicted[i]),
            "recall": share(hits[i], true[i]), "f1": share(2 * hits[i], true[i] + predicted[i]),
        }
        for i, name in enumerate(classes)
    ]  # fmt: skip


def _confused(classes: Sequence[str], counts: NDArray[np.int64]) -> list[tuple[str, str, int]]:
    """The pairs (true, predicted) that are most often taken for each other, with their counts."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:8]
    pairs = [divmod(int(cell), len(classes)) for cell in order]
    return [(classes[i], classes[j], int(wrong[i, j])) for i, j in pairs if wrong[i, j]]


def _mistakes(found: Predictions, classes: Sequence[str]) -> list[dict[str, Any]]:
    shown = []
    for place, row in enumerate(found.mistakes[:_MISTAKES].tolist()):
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


def _plotly() -> str:
    """plotly.js itself, as the package plotly carries it; the rest of that package is not imported."""
    spec = find_spec("plotly")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
