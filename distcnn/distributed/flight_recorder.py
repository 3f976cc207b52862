"""NCCL's flight recorder: dumps of each rank's last collectives, and the first one that not all ranks have joined."""

import json
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from distcnn.distributed.timeout import call_with_timeout
from distcnn.text import listed_ranks

_DUMP_TIMEOUT_S = 10.0  # a process that is about to exit must not hang in it


def trace_path(folder: Path, rank: int) -> Path:
    """Return the path of a rank's dump."""
    return folder / f"nccl_trace_rank{rank}.json"


def remove(folder: Path, rank: int) -> None:
    """Remove a rank's dump from an earlier start of the run."""
    with suppress(OSError):
        trace_path(folder, rank).unlink(missing_ok=True)


def dump(folder: Path, rank: int) -> bool:
    """Write this rank's last collectives into the folder, as JSON; return False if NCCL is not in use or this failed.

    PyTorch dumps them by itself only after `train.timeout`, which is later than the Watchdog ends the process.
    """
    trace: Any = getattr(torch._C._distributed_c10d, "_dump_nccl_trace_json", None)

    def write(_: object) -> bool:
        text = trace()
        if "entries" not in json.loads(text):
            return False
        trace_path(folder, rank).write_bytes(text)
        return True

    try:
        return trace is not None and call_with_timeout(write, _DUMP_TIMEOUT_S)
    except (OSError, RuntimeError, ValueError, TypeError):  # OSError includes TimeoutError
        return False


def read(folder: Path, ranks: int) -> dict[int, Any]:
    """Read the dumps that `ranks` ranks have written to the folder, by rank."""
    found = {}
    for rank in range(ranks):
        with suppress(OSError, ValueError):
            found[rank] = json.loads(trace_path(folder, rank).read_bytes())
    return found


def first_unmatched(dumps: Mapping[int, Any], ranks: int) -> str:
    """Describe the first collective in the dumps of `ranks` ranks that has not ended, and the ranks missing from it.

    Empty if every collective has ended. Point-to-point messages are ignored. A collective's number is its index in its
    process group, whose ranks issue all in the same order: ranks that issued a different one at that number, or with
    different shapes, are named. Fields that another release of PyTorch names differently are skipped.
    """
    groups: dict[str, dict[int, dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))  # group → number → rank
    last: dict[tuple[str, int], int] = {}
    for rank, one in dumps.items():
        for entry in one.get("entries", []):
            group, number = (entry.get("process_group") or [None])[0], entry.get("collective_seq_id")
            if group is not None and number is not None and not entry.get("is_p2p"):
                groups[group][number][rank] = entry
                last[group, rank] = max(number, last.get((group, rank), 0))
    unended = [
        (min(entry.get("time_created_ns", 0) for entry in by_rank.values()), group, number)
        for group, numbers in groups.items()
        for number, by_rank in numbers.items()
        if any(entry.get("state") != "completed" for entry in by_rank.values())
    ]
    if not unended:
        return ""
    _, group, number = min(unended)
    by_rank = groups[group][number]
    members = {rank for (name, rank) in last if name == group}
    begun: dict[str, list[int]] = defaultdict(list)
    for rank, entry in sorted(by_rank.items()):
        what = entry.get("profiling_name", "a collective").removeprefix("nccl:")
        begun[f"{what} {entry.get('input_sizes', '')}".rstrip()].append(rank)
    name = " or ".join(begun)
    parts = [f"NCCL's collective {number} of group {group}, {name}, has not ended"]
    if len(begun) > 1:
        parts.append(
            "the ranks differ: " + ", ".join(f"{what} on {listed_ranks(some)}" for what, some in begun.items())
        )
    missing = sorted(rank for rank in members - set(by_rank) if last[group, rank] < number)
    missing += sorted(set(dumps) - members)
    if missing:
        known = ", ".join(f"{listed_ranks([rank])}'s last is {last.get((group, rank), 'none')}" for rank in missing)
        parts.append(f"begun on {listed_ranks(sorted(by_rank))}, not on {listed_ranks(missing)} ({known})")
    elif len(begun) == 1:
        parts.append(f"begun on {listed_ranks(sorted(by_rank))}")
        done = sorted(rank for rank, entry in by_rank.items() if entry.get("state") == "completed")
        parts += [f"ended on {listed_ranks(done)}"] if done else []
    if silent := sorted(set(range(ranks)) - set(dumps)):
        parts.append(f"nothing is known of {listed_ranks(silent)}")
    return "; ".join(parts)
