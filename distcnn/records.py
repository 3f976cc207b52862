"""What is told of a run while it runs: one record is one line of metrics.jsonl."""

import time
from typing import Any

Record = dict[str, Any]  # {"kind": "train" | "eval" | "event", "step": int, …}


def event(name: str, step: int, message: str) -> Record:
    """A record of something other than numbers, with the time (seconds since 1970)."""
    return {"kind": "event", "event": name, "step": step, "message": message, "time": time.time()}
