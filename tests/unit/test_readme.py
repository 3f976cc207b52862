"""README's list of the core is that of the files."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_list_of_the_core_is_up_to_date():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    core = runpy.run_path(str(ROOT / "docs" / "core.py"))
    assert core["with_list"](readme) == readme, "run `python docs/core.py`"
