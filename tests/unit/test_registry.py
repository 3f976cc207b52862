"""Parts by name: built in, of an installed package, and a user's own, with their arguments."""

import sys
from typing import Annotated

import pytest
from pydantic import Field

from distcnn.errors import InputError
from distcnn.registry import Registry, checked_by
from tests.packages import install

HERE = "tests.unit.test_registry"


def _no_more_than_size(config, args):
    if args["shift"] > args["size"]:
        yield ("part.args.shift", "part.args.size"), f"{config}: shift is larger"


@checked_by(_no_more_than_size)
def shifted(images, *, size: Annotated[int, Field(ge=1, description="pixels a side")], shift: float = 0.0):
    return images, size, shift


def anything(images, **options):
    return images, options


def blended(images, seed, pair: tuple[int, int] = (1, 2)):
    return images, seed, pair


class Broken:
    def __init__(self, module: "NotThere"):  # noqa: F821
        self.module = module


MORE = {"further": anything}
PARTS = Registry(
    "test_parts",
    {"shifted": f"{HERE}:shifted", "blended": f"{HERE}:blended", "absent": "nowhere_at_all:thing"},
    given=("images", "seed"),
    more=f"{HERE}:MORE",
)


def problems(name, args):
    return [*PARTS.problems(name, args, "config", "part.name", "part.args")]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with two entry points, one of which cannot be imported."""
    points = {"extra": "lib_for_test:extra", "broken": "lib_for_test_gone:thing", "shifted": "lib_for_test:extra"}
    text = "def extra(images, *, much: int = 1):\n    return images, much\n"
    install(tmp_path, "lib_for_test", {"lib_for_test.py": text}, {"distcnn.test_parts": points})
    monkeypatch.syspath_prepend(tmp_path)
    yield Registry("test_parts", PARTS.builtin, given=("images",))
    sys.modules.pop("lib_for_test", None)


def test_a_part_gets_what_it_takes_and_the_users_arguments():
    assert PARTS.build("shifted", {"size": 3}, "images", seed=7) == ("images", 3, 0.0)
    assert PARTS.build("blended", {"pair": [3, 4]}, images="images", seed=7) == ("images", 7, (3, 4))
    assert PARTS.build("further", {"a": 1}, "images") == ("images", {"a": 1})
    assert PARTS.build(f"{HERE}:blended", {}, "images", seed=0) == ("images", 0, (1, 2))


def test_every_wrong_argument_is_told_by_its_key():
    assert problems("shifted", {"size": 0, "shift": "far", "sise": 3}) == [
        (("part.args.size",), "should be greater than or equal to 1"),
        (("part.args.shift",), "should be a valid number, unable to parse string as a number"),
        (("part.args.sise",), "unknown argument; did you mean size? shifted takes size, shift"),
    ]
    assert problems("shifted", {}) == [(("part.args.size",), "has to be given")]
    assert problems("shifted", {"size": 2, "shift": 3}) == [
        (("part.args.shift", "part.args.size"), "config: shift is larger")
    ]
    assert problems("further", {"whatever": 1}) == []


def test_an_item_of_a_list_names_its_argument_in_the_text():
    (problem,) = PARTS.problems("shifted", {"size": 0}, None, "parts")
    assert problem == (("parts",), "shifted: size: should be greater than or equal to 1")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("shiftet", "unknown; did you mean shifted? valid: shifted, blended, absent, or your own package.module:callable"),
        ("furthr", "did you mean further?"),
        ("absent", "nowhere_at_all:thing: No module named 'nowhere_at_all'; looked for in the current folder"),
        ("nowhere_at_all:x", "No module named 'nowhere_at_all'"),
        (f"{HERE}:missing", "has no attribute 'missing'"),
        (f"{HERE}:HERE", "is not callable"),
        ("builtins:dict", "builtins:dict has no signature: call it in a function of your own"),
    ],
)  # fmt: skip
def test_a_name_that_leads_nowhere_is_told_with_what_would(name, text):
    with pytest.raises(InputError, match=r".*") as caught:
        PARTS.load(name)
    assert text in str(caught.value)
    assert [keys for keys, _ in problems(name, {})] == [("part.name",)]


def test_an_installed_package_adds_parts_and_takes_no_name_of_ours(package):
    assert package.names() == ["shifted", "blended", "absent", "extra", "broken"]
    assert package.build("extra", {"much": 2}, "images") == ("images", 2)
    assert package.load("shifted") is shifted


def test_a_broken_package_is_named_where_it_is_used_and_only_there(package):
    assert [*package.problems("extra", {}, None, "part.name")] == []
    ((_, text),) = package.problems("broken", {}, None, "part.name")
    assert "lib_for_test_gone:thing: No module named 'lib_for_test_gone'" in text


def test_arguments_say_what_they_are():
    size, shift = PARTS.arguments("shifted")
    assert (size.name, size.type_name, size.description) == ("size", "int", "pixels a side")
    assert (shift.name, shift.type_name, shift.default) == ("shift", "float", 0.0)
    (module,) = Registry("x", {"broken": f"{HERE}:Broken"}).arguments("broken")
    assert (module.name, module.type_name) == ("module", "any")


def test_the_registry_needs_no_torch():
    import ast
    from pathlib import Path

    import distcnn.registry

    for file in ("registry", "arguments", "errors"):
        tree = ast.parse(Path(distcnn.registry.__file__).with_name(f"{file}.py").read_text())
        names = {one.name for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names}
        assert "torch" not in names


@pytest.mark.parametrize(
    ("text", "found"), [("def (", "SyntaxError: "), ("1 / 0", "ZeroDivisionError: division by zero")]
)
def test_a_module_that_fails_as_it_is_imported_is_named(tmp_path, monkeypatch, text, found):
    (tmp_path / "failing_for_test.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=f"failing_for_test cannot be imported: {found}"):
        PARTS.load("failing_for_test:thing")
