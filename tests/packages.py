"""Packages as pip leaves them, for tests: modules, metadata and entry points, in a folder that is then put on the path."""

from collections.abc import Mapping
from pathlib import Path

Points = Mapping[str, Mapping[str, str]]  # group → name → "module:object"


def install(folder: Path, name: str, modules: Mapping[str, str], points: Points) -> None:
    """Write a package of these modules, by their paths such as `name.py`, and make its entry points known."""
    for file, text in modules.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    lines = [
        line
        for group, known in points.items()
        for line in [f"[{group}]", *(f"{one} = {target}" for one, target in known.items())]
    ]
    (info / "entry_points.txt").write_text("\n".join([*lines, ""]))
