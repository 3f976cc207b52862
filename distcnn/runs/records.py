"""Records of a run: each is one line of metrics.jsonl."""

import json
import math
import time
from collections.abc import Callable
from typing import Any

Record = dict[str, Any]  # {"kind": "train" | "eval" | "event", "step": int, …}

# Fields of every eval record; further numbers are the configured metrics.
EVAL_FIELDS = frozenset(
    {"kind", "split", "step", "epoch", "correct", "total", "accuracy", "top5_correct", "top5_accuracy", "loss"}
    | {"per_class", "confusion"}
)


def further_metrics(record: Record) -> dict[str, float]:
    """Return the finite numbers of an eval record that come from `eval.metrics`, by name."""
    return {key: one for key, one in record.items() if key not in EVAL_FIELDS and _number(one)}


def event(name: str, step: int, message: str) -> Record:
    """Create an event record, stamped with the time in seconds since 1970."""
    return {"kind": "event", "event": name, "step": step, "message": message, "time": time.time()}


def to_json(record: Record) -> str:
    """Format a record as one line of JSON, which cannot hold NaN or infinity: they become null."""
    return json.dumps(_finite(record), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, (list, tuple)) else value


def parse_record(line: bytes) -> Record | None:
    """Parse a line of metrics.jsonl; None unless it is a record whose fields are present and of the right types."""
    try:
        record = json.loads(line)
        needed, optional = _FIELDS[record["kind"]]
        if all(check(record[key]) for key, check in needed.items()) and all(
            check(record[key]) for key, check in optional.items() if key in record
        ):
            return dict(record)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -(2.0**63) < value < 2.0**63


def _count(value: Any) -> bool:
    return isinstance(value, int) and _number(value) and value >= 0


def _loss(value: Any) -> bool:
    return value is None or _number(value)  # null in the log if it was not finite


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _time(value: Any) -> bool:
    return _number(value) and 0 <= value < 253_402_300_000  # the year 9999


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _list(value: Any) -> bool:
    return isinstance(value, list)


def _environment(value: Any) -> bool:
    if not (isinstance(value, dict) and _mapping(value.get("versions", {})) and _mapping(value.get("plan", {}))):
        return False
    return all(_count(value.get("plan", {}).get(key, 0)) for key in ("steps", "world_size", "parameters"))


# Kind of record → required fields, optional fields.
_FIELDS: dict[str, tuple[dict[str, Callable[[Any], bool]], dict[str, Callable[[Any], bool]]]] = {
    "train": (
        {"step": _count, "epoch": _number, "lr": _number, "images_per_s": _number},
        {"loss": _loss, "rank_spread": _number, "slowest_rank": _count},
    ),
    "eval": (
        {"step": _count, "accuracy": _number, "correct": _count, "total": _count},
        {"loss": _loss, "split": _text, "per_class": _mapping, "confusion": _list},
    ),
    "event": (
        {"step": _count, "event": _text},
        {"message": _text, "time": _time, "exit_code": _count, "environment": _environment},
    ),
}
