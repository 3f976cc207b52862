"""metrics.jsonl: one JSON object a line, the source of truth."""

import json
import math
from pathlib import Path
from typing import Any

from distcnn.tracking.base import Record
from distcnn.training.checkpoint import whole_file


class JsonlTracker:
    """Appends every record. Continuing from `step`, it first removes the lines after it, and a torn last one."""

    def __init__(self, path: Path, step: int = 0):
        self.path = path
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _is_until(line, step)]
            with whole_file(path) as partial:
                partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8", buffering=1)

    def log(self, record: Record) -> None:
        """Write one line. What JSON cannot hold (NaN, infinity) becomes null."""
        self.file.write(json.dumps(_finite(record), allow_nan=False) + "\n")

    def finish(self, status: str, summary: Record) -> None:  # noqa: ARG002
        """Close the file: the records have said it all."""
        self.file.close()


def _is_until(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError):
        return False


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, (list, tuple)) else value
