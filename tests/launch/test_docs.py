"""Every block of code in README and docs runs, on small data for a few steps, or says that it needs a GPU or a cluster."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distcnn.config.keys import KEYS, SECTIONS
from docs.hooks import graph, levels
from tests.ranks import clean_environment

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^>]*) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
MARKS = ("needs a GPU", "needs a cluster", "run by the CI")
# In the place of the programs: the same command, cut short, on the images at hand in the place of a download.
SHIM = """#!{python}
import os, sys
arguments = sys.argv[1:]
inner = arguments[arguments.index("distcnn") + 1:] if {torchrun} else arguments
if inner and inner[0] in ("train", "trials", "bench"):
    arguments += ["--train.duration", "2step", "--schedule.warmup", "0step", "--tracking.wandb", "disabled"]
    if "--data.source" not in arguments:
        arguments += ["--data.source", "folder", "--data.root", os.environ["DIR"]]
os.execv({python!r}, [{python!r}, "-m", {program!r}, *arguments])
"""


def blocks(path):
    return [(m["mark"] or "", m["language"], m["code"]) for m in BLOCK.finditer(path.read_text(encoding="utf-8"))]


@pytest.fixture
def place(tmp_path):
    """A folder as a clone would be, with images beside it and the programs in its PATH."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 64), ("test", 8)):
        for name in ("cat", "dog", "eel", "frog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{i}.png")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "bin").mkdir()
    for name, program in (("distcnn", "distcnn"), ("torchrun", "torch.distributed.run")):
        shim = tmp_path / "bin" / name
        shim.write_text(SHIM.format(python=sys.executable, program=program, torchrun=name == "torchrun"))
        shim.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("path", [page for page in PAGES if blocks(page)], ids=lambda path: path.stem)
def test_every_block_of_code_runs_or_says_what_it_needs(place, path):
    environment = clean_environment() | {
        "DIR": str(place / "images"), "DISTCNN_CACHE": str(place / "cache"), "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
    }  # fmt: skip
    for mark, language, code in blocks(path):
        assert language in ("sh", "python", "yaml", "text"), f"a block without a known language:\n{code}"
        assert mark in MARKS or not mark or language == "text"
        if mark or language not in ("sh", "python"):
            continue
        command = ["sh", "-e", "-c", code] if language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=place, env=environment, text=True, capture_output=True, timeout=300)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def test_every_command_and_page_is_in_the_documentation():
    import yaml

    from distcnn.commands import COMMANDS

    index = (ROOT / "docs" / "index.md").read_text()
    assert [name for name in COMMANDS.builtin if f"`{name}`" not in index] == []
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    groups = [pages for entry in nav for pages in ([[entry]] if isinstance(entry, str) else entry.values())]
    assert {page for group in groups for page in group} == {path.name for path in (ROOT / "docs").glob("*.md")}


def test_every_promise_names_tests_that_there_are():
    known = {
        f"{path.name}::{node.name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    lines = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|")[1:3] for line in lines if line.startswith("| ")][2:]
    assert len(rows) > 12
    for promise, tests in rows:
        named = re.findall(r"`([^`]+)`", tests)
        assert named, promise
        assert [name for name in named if name not in known] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_what_a_page_names_is_there(page):
    """Paths from the top of the project or of the package, and keys."""
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"\b(?:distcnn|tests|docs|benchmarks|launch|slurm|configs)/[\w/.-]*\w", text)
    paths += re.findall(r"\b\w+(?:/\w+)+\.py\b", text)
    assert [path for path in paths if not ((ROOT / path).exists() or (ROOT / "distcnn" / path).exists())] == []
    keys = re.findall(rf"`(?:--)?((?:{'|'.join(SECTIONS)})\.\w+)", text)
    assert [key for key in keys if key not in (*KEYS, "model.safetensors")] == []


def test_the_architecture_says_what_each_part_is_for():
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## What each part is for")[1]
    parts = [
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    ]
    assert sorted(parts) == sorted(graph())


def test_imports_run_one_way():
    order = levels(graph())  # raises where there is a circle
    assert order["errors"] == 0
    assert max(order, key=lambda part: order[part]) in ("__main__", "tools", "api")


def test_the_examples_of_distcnn_slurm_divide(monkeypatch, capsys):
    from distcnn.cli import EPILOG, main
    from distcnn.commands import slurm

    monkeypatch.chdir(ROOT)
    examples = re.findall(r"^  distcnn (slurm configs/(?:[^ \n]| (?! ))+)", EPILOG + slurm.EPILOG, re.MULTILINE)
    assert len(examples) == 5
    for example in examples:
        assert main([*example.replace(" --print", "").split(), "--print"]) == 0, capsys.readouterr().err
