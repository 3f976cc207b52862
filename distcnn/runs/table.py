"""Sort and print a table of runs: rows of `History.summary`, with settings as further columns."""

import json
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distcnn.text import printable

Row = dict[str, Any]
_WIDE = ("step", "accuracy", "best", "loss", "images_per_s", "updated")
_NARROW = ("step", "accuracy")
_WIDTH = 110  # columns; on narrower terminals, _NARROW is shown
_STYLES = {"running": "cyan", "done": "green", "failed": "red", "died": "red", "unreadable": "red"}


def as_text(value: Any) -> str:
    """Format a setting, for display and for comparison with the user's text."""
    return value if isinstance(value, str) else json.dumps(value)


def sort_rows(rows: Sequence[Row], key: str, *, reverse: bool) -> list[Row]:
    """Sort text ascending and numbers descending, or the reverse; rows without a value come last."""
    having = [row for row in rows if row[key] is not None]
    numbers = all(isinstance(row[key], int | float) for row in having)
    value: Callable[[Row], Any] = (lambda row: row[key]) if numbers else (lambda row: as_text(row[key]))
    return sorted(having, key=value, reverse=numbers != reverse) + [row for row in rows if row[key] is None]


def print_rows(rows: Sequence[Row], settings: Sequence[str], folder: Path) -> None:
    """Print the table, with the columns that fit the terminal; `settings` are the keys of further columns."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)
    if not rows:
        console.print(f"no such runs in {folder}", markup=False, emoji=False)
        return
    shown = _NARROW if console.width < _WIDTH else _WIDE
    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold", min_width=12)
    table.add_column("state", no_wrap=True)
    for column in shown:
        table.add_column(column.replace("_per_", "/"), justify="right", no_wrap=True)
    for key in settings:
        table.add_column(key, overflow="fold", min_width=8)
    explained = any(row["why"] for row in rows)
    if explained:
        table.add_column("why", overflow="fold", min_width=16)
    for row in rows:
        table.add_row(
            Text(printable(row["name"])),
            Text(row["state"], style=_STYLES.get(row["state"], "yellow")),
            *(_cell(row, column) for column in shown),
            *(Text(printable(as_text(row[key]))) for key in settings),
            *([Text(printable(row["why"]))] if explained else []),
        )
    console.print(table)


def _cell(row: Row, column: str) -> str:
    value = row[column]
    if value is None:
        return "–"
    if column == "step":
        return f"{value:,}" + (f" of {row['steps']:,}" if row["steps"] else "")
    if column == "updated":
        try:
            return f"{datetime.fromtimestamp(value):%Y-%m-%d %H:%M}"
        except (ValueError, OverflowError, OSError):  # a time outside the calendar's range, from a wrong clock
            return "–"
    return f"{value:{'.4f' if column == 'loss' else ',.0f' if column == 'images_per_s' else '.2%'}}"
