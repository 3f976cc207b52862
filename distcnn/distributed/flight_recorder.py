"""NCCL's flight recorder: what each rank last exchanged over NCCL, and which exchange somebody has not come to."""

import json
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from distcnn.distributed.patience import patiently
from distcnn.text import listed_ranks

_PATIENCE_S = 10.0  # to write a dump; a process that is about to end may not stand in it


def trace_path(folder: Path, rank: int) -> Path:
    """Where a rank's dump lies."""
    return folder / f"nccl_trace_rank{rank}.json"


def forget(folder: Path, rank: int) -> None:
    """Remove the dump that an earlier start of the run has left."""
    with suppress(OSError):
        trace_path(folder, rank).unlink(missing_ok=True)


def dump(folder: Path, rank: int) -> bool:
    """Write this rank's last exchanges into the folder, as JSON; False where NCCL is not in use, or it took too long.

    NCCL itself writes them when `train.timeout` has passed, which the Watchdog does not wait for.
    """
    trace: Any = getattr(torch._C._distributed_c10d, "_dump_nccl_trace_json", None)

    def write(_: object) -> bool:
        text = trace()
        if "entries" not in json.loads(text):
            return False
        trace_path(folder, rank).write_bytes(text)
        return True

    try:
        return trace is not None and patiently(write, _PATIENCE_S)
    except (OSError, RuntimeError, ValueError, TypeError):  # of the first, TimeoutError
        return False


def read(folder: Path, ranks: int) -> dict[int, Any]:
    """The dumps, by rank, of those ranks that have written theirs here."""
    found = {}
    for rank in range(ranks):
        with suppress(OSError, ValueError):
            found[rank] = json.loads(trace_path(folder, rank).read_bytes())
    return found


def first_unmatched(dumps: Mapping[int, Any], ranks: int) -> str:
    """Of `ranks` ranks' dumps, one sentence about the first collective that has not ended, and who is not in it.

    Empty if all that was begun has ended. Point-to-point messages are left out. A collective's number counts those of
    its process group, which all its ranks issue in one order; a rank that has issued another one at that number, or
    with other shapes, is said to. What another release of NCCL or PyTorch calls otherwise is left out.
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
        parts.append("the ranks differ: " + ", ".join(f"{what} on {listed_ranks(who)}" for what, who in begun.items()))
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
