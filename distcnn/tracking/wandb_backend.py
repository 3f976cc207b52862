"""Weights & Biases: online with an API key, otherwise offline; never prompts."""

import netrc
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any, Literal

from distcnn.config.schema import Config
from distcnn.registry import Problem, checked_by
from distcnn.runs.records import Record
from distcnn.text import missing
from distcnn.tracking.backend import TrackedRun

Mode = Literal["online", "offline", "disabled"]


def chosen_mode(asked: Mode | Literal["auto"]) -> Mode:
    """Resolve `auto`: WANDB_MODE if it is set, otherwise online with an API key, otherwise offline."""
    if asked != "auto":
        return asked
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


def _problems(config: Config, args: Mapping[str, Any]) -> Iterator[Problem]:  # noqa: ARG001
    mode = config.tracking.wandb
    if mode in ("online", "offline") and (needs := missing("wandb", "wandb")):
        yield ("tracking.wandb",), needs
    elif mode == "online" and not _has_key():
        yield ("tracking.wandb",), "no API key found; set WANDB_API_KEY or run `wandb login`, or use offline"


@checked_by(_problems)
def open_wandb(run: TrackedRun) -> "WandbBackend | None":
    """Open the run in the mode of `tracking.wandb`; None if it is disabled."""
    mode = chosen_mode(run.config.tracking.wandb)
    return None if mode == "disabled" else WandbBackend(run, mode)


class WandbBackend:
    """One W&B run: history, confusion matrix, most confident errors, and model and report as artifacts."""

    def __init__(self, run: TrackedRun, mode: Mode):
        import wandb

        self.wandb, self.tracked = wandb, run
        tracking = run.config.tracking
        # In a sweep, the agent chooses the run and its project.
        swept = "WANDB_SWEEP_ID" in os.environ
        own: dict[str, Any] = (
            {} if swept else {"id": run.id, "name": run.folder.name, "project": tracking.project, "resume": "allow"}
        )
        # console="off": wandb must not capture stdout and stderr.
        self.run = wandb.init(
            **own, dir=str(run.folder), mode=mode, group=tracking.group, config=run.settings,
            settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip
        self.step = 0

    def refill(self, history: Iterable[tuple[int, dict[str, float]]]) -> None:
        """Log the steps that the server lacks; offline, where these are unknown, all steps.

        The newest offline folder then holds the complete run.
        """
        for step, values in history:
            if step >= self.run.starting_step:
                self.log(values, step)
            self.step = step

    def log(self, values: dict[str, float], step: int) -> None:
        """Log to one row of the history; W&B merges rows of the same step."""
        self.step = step
        self.run.log(values, step=step)

    def finish(self, status: str, summary: Record) -> None:
        """Upload media and artifacts, and finish; a stopped run, which has little time, uploads only the numbers."""
        if status != "stopped":
            if media := self._media():
                self.run.log(media, step=self.step)  # W&B steps must not decrease
            for kind, name in (("model", "model.safetensors"), ("report", "report.html")):
                if (path := self.tracked.folder / name).is_file():
                    artifact = self.wandb.Artifact(f"{kind}-{self.run.id}", kind)
                    artifact.add_file(str(path))
                    self.run.log_artifact(artifact)
        self.run.summary.update({"status": status, **summary})
        if status == "stopped":
            self.run.mark_preempting()
        self.run.finish(exit_code=0 if status == "done" else 1)

    def _media(self) -> dict[str, Any]:
        media: dict[str, Any] = {}
        evaluations = self.tracked.history().evaluations
        if evaluations and {"confusion", "per_class"} <= evaluations[-1].keys():
            media["confusion_matrix"] = _confusion_plot(self.wandb, evaluations[-1])
        if mistakes := self.tracked.mistakes():
            rows = [[self.wandb.Image(image), *rest] for image, *rest in mistakes]
            columns: list[str | int] = ["image", "true", "predicted", "probability", "file"]
            media["mistakes"] = self.wandb.Table(columns=columns, data=rows)
        return media


def _confusion_plot(wandb: Any, record: Record) -> Any:
    """Plot the counts as W&B's confusion matrix chart, from a table of (actual, predicted, count)."""
    names, counts = list(record["per_class"]), record["confusion"]
    rows = [[names[i], names[j], counts[i][j]] for i in range(len(names)) for j in range(len(names))]
    table = wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=rows)
    fields = {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"}
    return wandb.plot_table("wandb/confusion_matrix/v1", table, fields, {"title": "confusion matrix"})
