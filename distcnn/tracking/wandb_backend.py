"""Weights & Biases: online with an API key, else offline; never a prompt."""

import netrc
import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from distcnn.config.schema import TrackingConfig
from distcnn.registry import Problem
from distcnn.runs.records import Record
from distcnn.text import missing
from distcnn.tracking.threaded import End

Mode = Literal["online", "offline", "disabled"]


def problems(config: TrackingConfig) -> list[Problem]:
    """What is wrong with the request."""
    if config.wandb in ("online", "offline") and (needs := missing("wandb", "wandb")):
        return [(("tracking.wandb",), needs)]
    if config.wandb == "online" and not _has_key():
        return [(("tracking.wandb",), "no API key found; set WANDB_API_KEY or run `wandb login`, or use offline")]
    return []


def chosen_mode(config: TrackingConfig) -> Mode:
    """`auto` resolved: what WANDB_MODE says, else online with a key, else offline. Never a prompt."""
    if config.wandb != "auto":
        return config.wandb
    if find_spec("wandb") is None:
        return "disabled"
    said = os.environ.get("WANDB_MODE", "")
    if said in ("offline", "dryrun"):
        return "offline"
    if said in ("disabled", "shared"):
        return "disabled"
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class WandbRun:
    """One W&B run: history, the confusion matrix, the surest mistakes, and model and report as artifacts."""

    def __init__(self, folder: Path, run_id: str, mode: Mode, project: str, group: str | None, config: dict[str, Any]):
        import wandb

        self.wandb = wandb
        # In a sweep, the agent has chosen the run, and its project.
        swept = "WANDB_SWEEP_ID" in os.environ
        own: dict[str, Any] = (
            {} if swept else {"id": run_id, "name": folder.name, "project": project, "resume": "allow"}
        )
        # console="off": wandb does not put itself between the training and its own output.
        self.run = wandb.init(
            **own, dir=str(folder), mode=mode, group=group, config=config,
            settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip
        self.step = 0

    def refill(self, history: Iterable[tuple[int, dict[str, float]]]) -> None:
        """What the server lacks at the end of its history; offline, where nobody can tell, all of it: the newest
        offline folder then holds the whole run.
        """
        for step, values in history:
            if step >= self.run.starting_step:
                self.log(values, step)
            self.step = step

    def log(self, values: dict[str, float], step: int) -> None:
        """One row of the history; rows of one step are merged by W&B."""
        self.step = step
        self.run.log(values, step=step)

    def finish(self, status: str, summary: Record, end: End) -> None:
        """With what there is to show, for a run that was stopped only the numbers: its time is short."""
        if status != "stopped":
            media: dict[str, Any] = {}
            if end.evaluation is not None:
                media["confusion_matrix"] = _confusion_plot(self.wandb, end.evaluation)
            if mistakes := end.mistakes():
                rows = [[self.wandb.Image(image), *rest] for image, *rest in mistakes]
                columns: list[str | int] = ["image", "true", "predicted", "probability", "file"]
                media["mistakes"] = self.wandb.Table(columns=columns, data=rows)
            if media:
                self.run.log(media, step=self.step)  # steps only rise
            for kind, name in (("model", "model.safetensors"), ("report", "report.html")):
                if (end.folder / name).is_file():
                    artifact = self.wandb.Artifact(f"{kind}-{self.run.id}", kind)
                    artifact.add_file(str(end.folder / name))
                    self.run.log_artifact(artifact)
        self.run.summary.update(summary)
        if status == "stopped":
            self.run.mark_preempting()
        self.run.finish(exit_code=0 if status == "done" else 1)


def _confusion_plot(wandb: Any, record: Record) -> Any:
    """The counts as W&B's own confusion matrix chart, from its table of (actual, predicted, count)."""
    names, counts = list(record["per_class"]), record["confusion"]
    rows = [[names[i], names[j], counts[i][j]] for i in range(len(names)) for j in range(len(names))]
    table = wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=rows)
    fields = {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"}
    return wandb.plot_table("wandb/confusion_matrix/v1", table, fields, {"title": "confusion matrix"})
