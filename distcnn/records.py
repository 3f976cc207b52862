"""What is told of a run while it runs: one record is one line of metrics.jsonl."""

from typing import Any

Record = dict[str, Any]  # {"kind": "train" | "eval" | "event", "step": int, …}


def event(name: str, step: int, message: str) -> Record:
    """A record of something other than numbers."""
    return {"kind": "event", "event": name, "step": step, "message": message}
