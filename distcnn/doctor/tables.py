"""The doctor's report as tables for a terminal, or as one JSON object."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distcnn.doctor.findings import RankReport, merged
from distcnn.doctor.ranks import GROUP_CHECKS
from distcnn.runs.records import to_json
from distcnn.text import listed_ranks

MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}
_LARGEST_MATRIX = 16  # ranks


def print_json(reports: Sequence[RankReport], measured: Mapping[str, Any]) -> None:
    """Print findings and measurements as one line of JSON."""
    print(to_json({"findings": merged(reports), **measured}), flush=True)


def print_tables(reports: Sequence[RankReport], measured: Mapping[str, Any]) -> None:
    """Print findings and measurements as tables."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    rows, world_size = merged(reports), len(reports)
    console.print(_findings(rows, world_size))
    if measured:
        console.print(_all_reduces(measured["all_reduce"], measured["backend"]))
        if world_size <= _LARGEST_MATRIX:
            console.print(_links(measured["links"], world_size))
    counts = {status: sum(row["status"] == status for row in rows) for status in MARKS}
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()))


def _findings(rows: Sequence[Mapping[str, Any]], world_size: int) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for row in rows:
        mark, style = MARKS[row["status"]]
        some = row["status"] != "ok" and row["name"] not in GROUP_CHECKS and len(row["ranks"]) < world_size
        text = Text(row["what"] + (f" ({listed_ranks(row['ranks'], 8)})" if some else ""))
        if row["fix"]:
            text.append(f"\n→ {row['fix']}", style="bold")
        table.add_row(Text(f"{mark} {row['status']}", style=style), Text(row["name"]), text)
    return table


def _all_reduces(rows: Sequence[Mapping[str, Any]], backend: str) -> Table:
    table = Table(title=f"all-reduce, {backend}", title_justify="left", box=None, pad_edge=False)
    for title in ("size", "latency", "bus bandwidth"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(_bytes(row["size"]), f"{row['seconds'] * 1e3:.2f} ms", f"{row['bandwidth'] / 1e6:,.1f} MB/s")
    return table


def _links(links: Sequence[Mapping[str, Any]], size: int) -> Table:
    title = Text("links in MB/s, from row to column", no_wrap=True, overflow="ignore")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    speeds = {(one["from"], one["to"]): one["bandwidth"] for one in links}
    table.add_column("rank", justify="right")
    for rank in range(size):
        table.add_column(f"{rank}", justify="right")
    for i in range(size):
        table.add_row(f"{i}", *("" if i == j else f"{speeds[i, j] / 1e6:,.0f}" for j in range(size)))
    return table


def _bytes(count: int) -> str:
    return f"{count >> 20} MiB" if count >> 20 else f"{count >> 10} KiB"
