"""Open the configured trackers."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from distcnn.config.schema import Config
from distcnn.config.types import named
from distcnn.registry import Problem
from distcnn.report import page as report_page
from distcnn.tracking import TRACKERS
from distcnn.tracking.backend import Backend, TrackedRun
from distcnn.tracking.base import Tracker
from distcnn.tracking.console import ConsoleTracker, plan_table
from distcnn.tracking.jsonl import JsonlTracker
from distcnn.tracking.report import ReportTracker
from distcnn.tracking.threaded import ThreadedTracker


def problems(config: Config) -> Iterator[Problem]:
    """Check `tracking.backends`, as far as possible before the run."""
    backends = [named(item) for item in config.tracking.backends]
    names = [name for name, _ in backends]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield ("tracking.backends",), f"{name} is given twice"
    if config.tracking.wandb in ("online", "offline") and "wandb" not in names:
        yield ("tracking.wandb", "tracking.backends"), "wandb is not among the backends: add it to them"
    for name, args in backends:
        yield from TRACKERS.problems(name, args, config, "tracking.backends")


def open_trackers(run: TrackedRun, launcher: str, last_checkpoint: Callable[[], str]) -> Iterator[Tracker]:
    """Open rank 0's trackers one by one, metrics.jsonl first, as others read it.

    `launcher` describes the launcher in the console's table. `last_checkpoint` returns the name of the newest
    checkpoint; the display's thread calls it. Raises OSError if metrics.jsonl cannot be written.
    """
    tracking = run.config.tracking
    yield JsonlTracker(run.folder / "metrics.jsonl", run.start_step)
    if tracking.console:
        title = f"{run.folder.name}: {run.config.model.name} on {run.config.data.source}"
        restarts = len(run.history().starts) if run.start_step else 0
        header = plan_table(run.plan, run.workload, title, launcher)
        yield ConsoleTracker(run.plan, header, run.start_step, restarts=restarts, last_checkpoint=last_checkpoint)
    if tracking.report and not report_page.missing():
        yield ReportTracker(run.folder)
    for name, args in map(named, tracking.backends):
        yield ThreadedTracker(name, run, _opener(name, args), tracking.timeout)


def _opener(name: str, args: Mapping[str, Any]) -> Callable[[TrackedRun], Backend | None]:
    return lambda run: TRACKERS.build(name, args, run)
