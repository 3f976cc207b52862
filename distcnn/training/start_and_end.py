"""The start of a run, after the rendezvous, and its end, after the last step."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING

from distcnn.checkpoint.file import Checkpoints, step_of
from distcnn.checkpoint.state import Checkpoint
from distcnn.checkpoint.weights import save_safetensors
from distcnn.checkpoint.writer import CheckpointWriter
from distcnn.config.settings import to_yaml
from distcnn.config.tree import diff
from distcnn.distributed.collectives import on_main
from distcnn.distributed.device import slow_precision
from distcnn.distributed.network import describe_network
from distcnn.errors import DistcnnError, InputError
from distcnn.files import atomic_file
from distcnn.report import page as report_page
from distcnn.runs import environment
from distcnn.runs.folder import run_id
from distcnn.runs.records import event
from distcnn.tracking.backend import TrackedRun
from distcnn.tracking.open import open_trackers
from distcnn.training.summary import summary_fields

if TYPE_CHECKING:
    from distcnn.training.run import Run


def begin(run: Run) -> CheckpointWriter:
    """Open the run's files and trackers, log its start, and return its checkpoint writer. A collective."""
    world, step = run.world, run.progress.step
    checkpoints = Checkpoints(run.folder / "checkpoints", run.config.checkpoint.keep) if world.is_main else None
    seconds = os.environ.get("DISTCNN_GRACE", "")
    grace = int(seconds) if seconds.isdecimal() else 0
    writer = CheckpointWriter(checkpoints, run.trackers.log, run.config.checkpoint.minutes, grace)
    run.stop.begin(run.config.train.timeout)
    start = event("started", step, f"{run.plan.steps} steps")
    if run.resumed:
        start = event("resumed", step, _what_changed(run, run.resumed))
    details = {"launcher": world.launcher, **environment.describe(), "plan": asdict(run.plan) | asdict(run.workload)}
    on_main(lambda: _open_files(run), "rank 0 to open its trackers")
    run.log(start | {"environment": details})
    if advice := slow_precision(run.config, run.device):
        run.log(event("slow_precision", step, advice))
    return writer


def _open_files(run: Run) -> None:
    """Write config.yaml and open the trackers; on rank 0 only."""
    folder = run.folder

    def newest_checkpoint() -> str:
        return next((f"step {step_of(path)}" for path in Checkpoints(folder / "checkpoints").all()), "")

    try:
        with atomic_file(folder / "config.yaml") as file:
            file.write_text(to_yaml(run.config), encoding="utf-8")
        tracked = TrackedRun(folder, run_id(folder), run.config, run.plan, run.workload, run.progress.step)
        launcher = f"{run.world.launcher}, {describe_network(run.world)}"
        run.trackers.trackers += open_trackers(tracked, launcher, newest_checkpoint)
    except OSError as error:
        raise InputError(f"output_dir: {folder}: {error.strerror}; not writable, or no disk space") from error


def _what_changed(run: Run, resumed: Checkpoint) -> str:
    keys = ("world_size", "micro_batch", "accumulation", "threads", "device")
    both = ((resumed.plan, resumed.workload), (run.plan, run.workload))
    before, now = ({key: (asdict(plan) | asdict(workload))[key] for key in keys} for plan, workload in both)
    changed = "".join(f"; {change}" for change in diff(before, now))
    skipped = f"; skipped damaged checkpoints: {', '.join(path.name for path in run.damaged)}" if run.damaged else ""
    return f"at step {run.progress.step} of {run.plan.steps}{changed}{skipped}"


def finish(run: Run) -> None:
    """Write the weights and finish the trackers. A collective. Raises DistcnnError for what could not be written."""
    step, evaluation = run.progress.step, run.evaluation
    assert evaluation is not None
    lost = on_main(lambda: _write_weights(run), "rank 0 to write the weights")
    status, message = ("failed", f"could not write {'; '.join(lost)}") if lost else ("done", "")
    run.log(event(status, step, message or f"{evaluation.accuracy:.2%}"))
    report = run.config.tracking.report and not report_page.missing()
    summary = summary_fields(evaluation, run.progress, run.plan, run.folder)
    lost += run.trackers.finish(status, summary | ({"report": run.folder / "report.html"} if report else {}))
    if lost:
        raise DistcnnError(f"trained to the end, step {step}, but could not write {'; '.join(lost)}")


def _write_weights(run: Run) -> list[str]:
    """Write model.safetensors on rank 0; return what could not be written, the last checkpoint included."""
    step, problem = run.progress.step, run.writer.problem
    lost = [f"the checkpoint of step {step}, which {problem}"] if problem else []
    try:
        with run.averages.swapped_in():
            final = run.checkpoint()
            save_safetensors(run.folder / "model.safetensors", final.model, final.description)
    except OSError as error:
        lost.append(f"model.safetensors ({error})")
    return lost
