"""MkDocs hook: the architecture page's import graph, made from the code at each build."""

import ast
from html import escape
from pathlib import Path
from typing import Any

CODE = Path(__file__).parents[1] / "distcnn"
MARK = "<!-- import graph -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the graph in the place of its mark."""
    return markdown.replace(MARK, f"{drawn(graph())}\n\n{table(graph())}") if MARK in markdown else markdown


def graph() -> dict[str, set[str]]:
    """Each part (a file of the top level, or a folder) → the parts that it imports from."""
    found: dict[str, set[str]] = {}
    for path in sorted(CODE.rglob("*.py")):
        part = path.relative_to(CODE).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        imported = found.setdefault(part, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("distcnn"):
                names = [node.module] if node.module != "distcnn" else [f"distcnn.{one.name}" for one in node.names]
                imported.update(name.split(".")[1] for name in names if name)
        imported -= {part, "__version__"}
    return found


def levels(parts: dict[str, set[str]]) -> dict[str, int]:
    """0 for what imports nothing, else one more than the highest that is imported. Raises ValueError for a circle."""
    known: dict[str, int] = {}

    def level(part: str, above: tuple[str, ...] = ()) -> int:
        if part in above:
            raise ValueError(f"a circle of imports: {' → '.join([*above[above.index(part) :], part])}")
        if part not in known:
            known[part] = 1 + max((level(other, (*above, part)) for other in parts[part]), default=-1)
        return known[part]

    for part in parts:
        level(part)
    return known


def drawn(parts: dict[str, set[str]]) -> str:
    """An SVG: what imports nothing at the top, lines from each part up to what it imports."""
    rows: dict[int, list[str]] = {}
    for part, level in levels(parts).items():
        rows.setdefault(level, []).append(part)
    width, step = 920, 74
    place = {
        part: (width * (i + 0.5) / len(row), 24 + step * level)
        for level, row in rows.items()
        for i, part in enumerate(row)
    }
    lines = "".join(
        f'<line x1="{place[a][0]:.0f}" y1="{place[a][1]}" x2="{place[b][0]:.0f}" y2="{place[b][1]}"/>'
        for a in parts
        for b in sorted(parts[a])
    )
    boxes = "".join(
        f'<rect x="{x - 52:.0f}" y="{y - 14}" width="104" height="28" rx="5"/>'
        f'<text x="{x:.0f}" y="{y + 5}" text-anchor="middle">{escape(part).replace("_", "&#95;")}</text>'
        for part, (x, y) in place.items()
    )
    style = (
        ".imports line{stroke:currentColor;stroke-opacity:.18}.imports rect{fill:var(--md-default-bg-color,#fff);"
        "stroke:currentColor}.imports text{fill:currentColor;font-size:13px}"
    )
    height = step * len(rows)
    return (
        f'<svg class="imports" viewBox="0 0 {width} {height}" role="img" aria-label="Import graph; the table below '
        f'says the same"><style>{style}</style>{lines}{boxes}</svg>'
    )


def table(parts: dict[str, set[str]]) -> str:
    """The same in words, from the top down."""
    order = levels(parts)
    rows = [
        f"| `{part}` | {', '.join(f'`{other}`' for other in sorted(parts[part], key=lambda o: (order[o], o))) or '–'} |"
        for part in sorted(parts, key=lambda part: (order[part], part))
    ]
    return "\n".join(["| part | imports from |", "| --- | --- |", *rows])
