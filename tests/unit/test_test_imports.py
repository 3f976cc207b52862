"""What tests share stands in modules of its own: to import a test, or a conftest, would run it with its fixtures."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def imported(text: str) -> Iterator[str]:
    """The dotted name of everything that is imported, anywhere in the module."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def of_tests(text: str) -> list[str]:
    """Those that name a test module or a conftest."""
    modules = {path.stem for path in TESTS.rglob("*.py") if path.stem.startswith("test_") or path.stem == "conftest"}
    return [name for name in imported(text) if modules & set(name.split("."))]


def test_nothing_is_imported_from_a_test_or_a_conftest():
    files = sorted(TESTS.rglob("*.py"))
    assert len(files) > 50
    found = {str(path.relative_to(TESTS)): of_tests(path.read_text(encoding="utf-8")) for path in files}
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "text",
    [
        "from tests.unit.test_history import rows", "from tests.unit import test_history", "from .test_history import rows",
        "import tests.unit.test_history as x", "from tests.conftest import x", "def f():\n    from . import conftest",
    ],
)  # fmt: skip
def test_each_way_to_import_one_is_found(text):
    assert len(of_tests(text)) == 1


def test_what_tests_share_may_be_imported():
    assert of_tests("import torch.testing\nfrom tests.written_runs import make\nfrom tests import records") == []
