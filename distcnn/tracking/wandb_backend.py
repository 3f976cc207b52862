"""Weights & Biases: online with an API key, else offline; never a prompt."""

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
    """Resolve `auto`: what WANDB_MODE says, else online with a key, else offline. Never a prompt."""
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
    """Open the run in the mode that `tracking.wandb` asks for; None where that is disabled."""
    mode = chosen_mode(run.config.tracking.wandb)
    return None if mode == "disabled" else WandbBackend(run, mode)


class WandbBackend:
    """One W&B run: history, the confusion matrix, the most confident mistakes, and model and report as artifacts."""

    def __init__(self, run: TrackedRun, mode: Mode):
        import wandb

        self.wandb, self.tracked = wandb, run
        tracking = run.config.tracking
        # In a sweep, the agent has chosen the run, and its project.
        swept = "WANDB_SWEEP_ID" in os.environ
        own: dict[str, Any] = (
            {} if swept else {"id": run.id, "name": run.folder.name, "project": tracking.project, "resume": "allow"}
        )
        # console="off": wandb does not put itself between the training and its own output.
        self.run = wandb.init(
            **own, dir=str(run.folder), mode=mode, group=tracking.group, config=run.settings,
            settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip
        self.step = 0

    def refill(self, history: Iterable[tuple[int, dict[str, float]]]) -> None:
        """Log what the server lacks at the end of its history; offline, where that cannot be known, all of it: the
        newest offline folder then holds the complete run.
        """
        for step, values in history:
            if step >= self.run.starting_step:
                self.log(values, step)
            self.step = step

    def log(self, values: dict[str, float], step: int) -> None:
        """Add to one row of the history; rows of one step are merged by W&B."""
        self.step = step
        self.run.log(values, step=step)

    def finish(self, status: str, summary: Record) -> None:
        """End, with what there is to show; of a run that was stopped only the numbers: its time is short."""
        if status != "stopped":
            if media := self._media():
                self.run.log(media, step=self.step)  # steps only rise
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
    """The counts as W&B's own confusion matrix chart, from its table of (actual, predicted, count)."""
    names, counts = list(record["per_class"]), record["confusion"]
    rows = [[names[i], names[j], counts[i][j]] for i in range(len(names)) for j in range(len(names))]
    table = wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=rows)
    fields = {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"}
    return wandb.plot_table("wandb/confusion_matrix/v1", table, fields, {"title": "confusion matrix"})
