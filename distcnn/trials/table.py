"""Print a summary of trials as a table."""

import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

COLUMNS = ("config", "n", "mean", "std. deviation", "95 % interval", "loss")


def print_table(found: dict[str, Any]) -> None:
    """Print the result of `summarise`: one row per config, and one for the difference."""
    table = Table(box=None, pad_edge=False)
    for title in COLUMNS:
        table.add_column(title, justify="left" if title == "config" else "right", overflow="fold")
    for name, one in found["configs"].items():
        accuracy, loss = one.get("accuracy"), one.get("loss")
        if accuracy is None:
            table.add_row(Text(name), "0", "–", "–", "–", "–")
            continue
        loss_mean = "–" if loss is None else f"{loss['mean']:.4f}"
        table.add_row(Text(name), f"{accuracy['n']}", f"{accuracy['mean']:.2%}", *_spread(accuracy), loss_mean)
    difference = found.get("difference")
    if difference:
        second, first = difference["of"]
        cells = f"{difference['n']}", f"{100 * difference['mean']:+.2f} points", *_spread(difference)
        table.add_row(Text(f"{second} - {first}"), *cells, "")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)
    console.print(table)
    if difference:
        p = difference["p"]
        test = "no p-value: the differences do not vary" if p is None else f"p = {p:.2g} (paired t-test, two-sided)"
        console.print(f"difference over shared seeds: {test}", markup=False)


def _spread(one: dict[str, Any]) -> tuple[str, str]:
    if one["deviation"] is None:
        return "–", "–"
    return f"{one['deviation']:.2%}", f"{one['low']:.2%} to {one['high']:.2%}"
