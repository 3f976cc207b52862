"""Weights & Biases, kept at arm's length: all of it runs in a thread of its own, and nobody waits for it for long."""

import netrc
import os
import queue
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from distcnn.config import TrackingConfig
from distcnn.conflicts import Problem
from distcnn.parallel.waiting import waiting
from distcnn.records import Record

THREAD_NAME = "distcnn-wandb"
_BACKLOG = 50_000  # records kept for a wandb that is slow; beyond it they are dropped, with one warning


def problems(config: TrackingConfig) -> list[Problem]:
    """What is wrong with the request."""
    if config.wandb in ("online", "offline") and find_spec("wandb") is None:
        return [(("tracking.wandb",), "needs wandb: pip install 'distcnn[wandb]'")]
    if config.wandb == "online" and not _has_key():
        return [(("tracking.wandb",), "no API key found; set WANDB_API_KEY or run `wandb login`, or use offline")]
    return []


def chosen_mode(config: TrackingConfig) -> Literal["online", "offline", "disabled"]:
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


class WandbTracker:
    """One W&B run. A wandb that raises or blocks costs a warning, and at most `timeout` seconds at the end."""

    def __init__(self, folder: Path, run_id: str, mode: str, project: str, config: dict[str, Any], timeout: float):
        self.timeout = timeout
        self.trouble = False
        self.inbox: queue.Queue[tuple[str, Record]] = queue.Queue(_BACKLOG)
        init = {
            "dir": str(folder), "id": run_id, "name": folder.name, "project": project, "mode": mode,
            "config": config, "resume": "allow",
        }  # fmt: skip
        self.thread = threading.Thread(target=self._work, args=(init,), name=THREAD_NAME, daemon=True)
        self.thread.start()

    def log(self, record: Record) -> None:
        """Hand over one record without waiting."""
        try:
            self.inbox.put_nowait(("log", record))
        except queue.Full:
            self._warn(f"wandb is stuck; it has missed records from step {record.get('step')} on")

    def finish(self, status: str, summary: Record) -> None:
        """Let wandb finish, within the bounded time; shorter for a run that a scheduler is about to end."""
        timeout = min(self.timeout, 5.0) if status == "stopped" else self.timeout
        if self.thread.is_alive():
            try:
                self.inbox.put_nowait(("finish", {"status": status, **summary}))
            except queue.Full:
                return
            with waiting("wandb to finish"):
                self.thread.join(timeout)
        if self.thread.is_alive():
            self._warn(f"wandb did not finish within {timeout:g} s and was left behind")

    def _warn(self, message: str) -> None:
        if not self.trouble:
            self.trouble = True
            print(f"warning: {message}; the training goes on, and metrics.jsonl is complete", file=sys.stderr)

    def _work(self, init: dict[str, Any]) -> None:
        try:
            import wandb

            # console="off": wandb does not put itself between the training and its own output.
            run = wandb.init(**init, settings=wandb.Settings(console="off", silent=True))
            confusion: Record = {}
            step = 0
            while True:
                what, record = self.inbox.get()
                if what == "finish":
                    break
                if record["kind"] == "train":
                    values = {f"train/{key}": record[key] for key in ("loss", "lr", "images_per_s")}
                elif record["kind"] == "eval":
                    confusion = record
                    values = {f"test/{key}": record[key] for key in ("loss", "accuracy", "top5_accuracy")}
                    values |= {f"test/accuracy/{name}": value for name, value in record["per_class"].items()}
                else:
                    continue
                step = record["step"]
                run.log({**values, "epoch": record["epoch"]}, step=step)
            if confusion:
                run.log({"confusion_matrix": _confusion_plot(wandb, confusion)}, step=step)  # steps only rise
            run.summary.update(record)
            if record["status"] == "stopped":
                run.mark_preempting()
            run.finish(exit_code=0 if record["status"] == "done" else 1)
        except Exception as error:  # whatever it is, it is wandb's
            self._warn(f"wandb failed ({type(error).__name__}: {error})")


def _confusion_plot(wandb: Any, record: Record) -> Any:
    """The counts as W&B's own confusion matrix chart, from its table of (actual, predicted, count)."""
    names, counts = list(record["per_class"]), record["confusion"]
    rows = [[names[i], names[j], counts[i][j]] for i in range(len(names)) for j in range(len(names))]
    table = wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=rows)
    fields = {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"}
    return wandb.plot_table("wandb/confusion_matrix/v1", table, fields, {"title": "confusion matrix"})
