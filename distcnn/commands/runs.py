"""`distcnn runs`: a table of the runs in a folder."""

import fnmatch
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from distcnn.commands.parser import Handler, Options, Parser, add_json, positive_int
from distcnn.config.keys import KEYS
from distcnn.config.tree import flatten
from distcnn.errors import InputError
from distcnn.runs.history import History, State, read_history
from distcnn.text import printable

EPILOG = """examples:
  distcnn runs                                          the newest first
  distcnn runs --sort accuracy --top 10
  distcnn runs --state failed died                      with the reasons
  distcnn runs sweeps/ --name 'resnet*' --where train.batch_size=128 --show optim.lr model.name
  distcnn runs --json | jq .

States: running; done; preempted (by a scheduler's signal; start it again with --checkpoint.resume auto); interrupted
(by Ctrl-C); failed; died (it logged no end, and no process holds its lock: it was killed, or its host was lost);
unreadable (its log is damaged). The column why gives reasons, and names other damage.
"""
COLUMNS = ("name", "state", "step", "steps", "accuracy", "best", "loss", "images_per_s", "updated", "why")


def runs(parser: Parser) -> Handler:
    """Print a table of the runs in a folder."""
    parser.epilog, add = EPILOG, parser.add_argument
    add("folder", metavar="FOLDER", nargs="?", default="runs", help="default: runs")
    add("--sort", default="updated", metavar="COLUMN", help=f"{', '.join(COLUMNS)}, or a shown key; default: updated")
    add("--reverse", action="store_true", help="reverse the order")
    add("--state", nargs="+", default=[], choices=get_args(State), metavar="STATE", help="only runs in these states")
    add("--name", default="*", metavar="PATTERN", help="only runs whose name matches, such as 'resnet*'")
    add("--where", nargs="+", default=[], metavar="KEY=VALUE", help="only runs with these settings")
    add("--show", nargs="+", default=[], metavar="KEY", help="settings to show as additional columns")
    add("--top", type=positive_int, metavar="N", help="only the first N")
    add_json(parser, "print a list of objects instead of the table")
    parser.set_defaults(problems=[])
    return run


def run(options: Options) -> None:
    """Print the table. Raises InputError."""
    folder, paths = Path(options.folder), list[Path]()
    problems: list[str] = options.problems
    try:
        paths = sorted(folder.iterdir())
    except FileNotFoundError:
        problems.append(f"{folder}: no such folder; runs are in the config's output_dir")
    except OSError as error:
        problems.append(f"{folder}: {error.strerror}; give a folder that can be read")
    wanted: dict[str, Any] = {}
    for text in options.where:
        key, equals, value = text.partition("=")
        if not equals or key not in KEYS:
            problems.append(f"--where {text}: should be KEY=VALUE with a key of the config, such as optim.lr=0.1")
        wanted[key] = value
    problems += [f"--show {key}: not a key of the config, such as optim.lr" for key in options.show if key not in KEYS]
    columns = [*COLUMNS, *options.show]
    if options.sort not in columns:
        problems.append(f"--sort {options.sort}: should be one of {', '.join(columns)}")
    if problems:
        raise InputError(problems)
    from distcnn.runs.table import as_text, print_rows, sort_rows

    rows, unknown = [], []
    for history in _histories(path for path in paths if fnmatch.fnmatchcase(path.name, options.name)):
        if wanted and not history.settings:
            unknown.append(history.name)
            continue
        flat = flatten(history.settings)
        settings = {key: flat.get(key) for key in (*wanted, *options.show)}
        fits = all(as_text(settings[key]) == value for key, value in wanted.items())
        if fits and (not options.state or history.state in options.state):
            rows.append(history.summary() | {key: settings[key] for key in options.show})
    rows = sort_rows(rows, options.sort, reverse=options.reverse)[: options.top]
    if options.json:
        print(json.dumps(rows))
    else:
        print_rows(rows, options.show, folder)
    if unknown:
        names = ", ".join(map(printable, unknown))
        print(f"warning: --where leaves out {names}: no readable config", file=sys.stderr)


def _histories(paths: Iterable[Path]) -> Iterator[History]:
    """Yield the history of each path that is a run and has not been removed meanwhile."""
    for path in paths:
        try:
            yield read_history(path)
        except InputError:
            continue
