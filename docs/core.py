"""Write README's list of the core: one line per file, in reading order, from the files' docstrings.

`python docs/core.py` rewrites the list between the two marks; a test fails if it is out of date.
"""

import ast
import re
from pathlib import Path

from distcnn.commands.parts import KINDS

ROOT = Path(__file__).parents[1]
CODE = ROOT / "distcnn"
MARKS = ("<!-- core -->", "<!-- /core -->")
# Folders in reading order, and in each the files that come first; the rest follow by name.
ROOMS = {
    "training": ("loop", "run", "train", "build", "start_and_end", "step_log", "evaluate"),
    "engine": ("base", "gradient_sum", "ddp"),
    "optim": ("optimizers", "schedules"),
    "models": (),
    "data": ("samplers", "keyed", "sources/load", "sources/image_set", "normalize", "preprocess", "loaders/batch"),
    "checkpoint": ("state", "file", "writer", "snapshot", "resume"),
    "distributed": ("world", "rendezvous", "collectives", "signals", "stop", "watch", "watchdog", "exit", "shutdown"),
    "runs": ("folder", "records", "history"),
    "tracking": ("base", "backend", "open"),
    "config": ("schema", "plan", "settings"),
    "": ("errors", "registry", "arguments", "files", "rank", "text"),
}
# The parts of the registries: read the one that you need.
PARTS = {
    CODE.joinpath(*target.partition(":")[0].split(".")[1:]).with_suffix(".py")
    for registry, _ in KINDS.values()
    for target in registry.builtin.values()
}
PARTS -= {CODE / "optim" / "schedules.py"}  # besides the schedules, what every run needs of them
ENTRANCES = {CODE / f"{name}.py" for name in ("__init__", "__main__", "api", "cli")}


def files() -> dict[str, list[Path]]:
    """The core's files by folder, in reading order."""
    found = {}
    for room, first in ROOMS.items():
        folder = CODE / room
        rank = {folder / f"{name}.py": at for at, name in enumerate(first)}
        assert all(path.is_file() for path in rank), rank
        known = sorted(folder.rglob("*.py") if room else folder.glob("*.py"), key=lambda p: (rank.get(p, 99), p))
        found[room] = [path for path in known if path not in PARTS | ENTRANCES]
    return found


def listed() -> str:
    """The list in Markdown."""
    lines = [
        f"{sum(map(len, files().values()))} files, about {round(_lines() / 500) * 500:,} lines, in reading order. "
        "`python docs/core.py` writes this list from the files' docstrings.",
    ]
    for room, paths in files().items():
        lines += ["", f"**distcnn/{room}**", ""]
        lines += [f"- `{path.relative_to(CODE)}`: {_first_sentence(path)}" for path in paths]
    return "\n".join(lines)


def _lines() -> int:
    return sum(path.read_text(encoding="utf-8").count("\n") for paths in files().values() for path in paths)


def _first_sentence(path: Path) -> str:
    text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
    return re.split(r"\.(?=\s[A-Z`]|$)", " ".join(text.split()), maxsplit=1)[0]


def with_list(readme: str) -> str:
    """README's text with the list of today."""
    before, _, rest = readme.partition(MARKS[0])
    return f"{before}{MARKS[0]}\n{listed()}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(with_list(page.read_text(encoding="utf-8")), encoding="utf-8")
