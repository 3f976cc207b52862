"""The HTML page: the template and its variables. The template escapes every string of a run."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from distcnn import __version__, text
from distcnn.config.tree import flatten
from distcnn.errors import InputError
from distcnn.files import atomic_file
from distcnn.report.curves import curves
from distcnn.report.evaluation import evaluation
from distcnn.report.overview import environment, event, headlines
from distcnn.runs.history import History

HERE = Path(__file__).parent
_STATES = {
    "running": "is running", "done": "ran to its end", "preempted": "was preempted", "interrupted": "was interrupted",
    "failed": "failed",
    "died": "died without logging its end: killed, or its host was lost", "unreadable": "has a log that cannot be read",
}  # fmt: skip


def missing() -> str:
    """Return which packages have to be installed first; "" if none."""
    return text.missing("report", "plotly", "jinja2")


def page(runs: Sequence[History]) -> str:
    """Return the HTML text. Raises InputError if none of the runs has logged anything."""
    if not any(run.records for run in runs):
        raise InputError([f"{run.folder}: {'; '.join((*run.damage, *_empty(run)))}" for run in runs])
    import jinja2

    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True)
    templates.filters["percent"] = lambda value: "–" if value is None else f"{value:.2%}"
    shown, single = curves(runs), dict[str, Any]()
    if len(runs) == 1:
        single, further = evaluation(runs[0])
        shown += further
        single |= _described(runs[0])
    compared = [run for run in runs if run.settings]
    return templates.get_template("page.html").render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        states=[(run.name, _STATES[run.state], run.reason) for run in runs],
        damaged=[(run.name, "; ".join(run.damage)) for run in runs if run.damage],
        table=[run.summary() for run in runs],
        differing=differing([run.settings for run in compared]),
        names=[run.name for run in compared],
        figures=[{key: figure[key] for key in ("id", "title", "about")} for figure in shown],
        data=json.dumps(shown, separators=(",", ":")).replace("<", "\\u003c"),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
        plotly=_plotly(),
        version=__version__,
        **single,
    )


def _empty(run: History) -> tuple[str, ...]:
    return () if run.state == "unreadable" else ("nothing is logged yet",)


def write_page(runs: Sequence[History], output: Path) -> int:
    """Write the page atomically; return its size in characters. Raises InputError, OSError."""
    html = page(runs)
    with atomic_file(output) as aside:
        aside.write_text(html, encoding="utf-8", errors="replace")
    return len(html)


def differing(settings: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return (dotted key, its value in each) for the settings that differ, except the name."""
    flat = [flatten(tree) for tree in settings]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = [(key, [json.dumps(one[key]) if key in one else "–" for one in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1 and key != "name"]


def _described(run: History) -> dict[str, Any]:
    return {
        "headlines": headlines(run),
        "events": [event(record) for record in run.of("event")],
        "config": yaml.safe_dump(run.settings, sort_keys=False, allow_unicode=True) if run.settings else "",
        "environment": environment(run),
    }


def _plotly() -> str:
    """Return plotly.js, from the package plotly, without importing that package."""
    spec = find_spec("plotly")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
