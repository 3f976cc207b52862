"""What a run has written, as tests look at it."""

import json
from pathlib import Path
from typing import Any


def metrics(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in (None, line["kind"])]


def events(folder: Path) -> list[dict[str, Any]]:
    """What has happened between start and end."""
    return [line for line in metrics(folder, "event") if line["event"] not in ("started", "done", "failed")]


def steps(folder: Path) -> int:
    """Steps logged so far, of a run that may not have begun; a torn last line does not count."""
    try:
        return (folder / "metrics.jsonl").read_text().count('"kind": "train"')
    except FileNotFoundError:
        return 0


def losses(folder: Path) -> list[tuple[str, int, float]]:
    """Kind, step and loss of every training step and evaluation."""
    return [(line["kind"], line["step"], line["loss"]) for line in metrics(folder) if line["kind"] != "event"]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()
