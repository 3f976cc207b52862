"""docs/gpu.md is what the results in docs/gpu make; CUDA's names in the checks are those of PyTorch."""

import ast
import json
from pathlib import Path

import pytest
import torch

from tests.gpu import page
from tests.gpu.suite import ROOT, in_order
from tests.gpu.suites import CORRECT, MORE, RANKS, SPEED

FILES = sorted([*(ROOT / "tests" / "gpu").glob("*.py"), *(ROOT / "benchmarks" / "gpu").glob("*.py")])
MACHINE = {"kind": "machine", "gpu": "NVIDIA H100", "memory_gib": 79.6, "driver": "570.1", "torch": "2.14.1", "cuda": "13.0",
           "nccl": "2.30.7", "python": "3.12.3", "cores": 16, "date": "2030-01-02", "toy": False,
           "command": "python -m tests.gpu.correct"}  # fmt: skip


def line(name, status, value, seconds=1.0):
    return {"kind": "check", "name": name, "status": status, "value": value, "seconds": seconds}


def written(folder, *lines):
    (folder / "correct.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return page.text(folder)


def test_the_page_is_what_its_results_make():
    assert page.PAGE.read_text(encoding="utf-8") == page.text(), "run python -m tests.gpu.page"


def test_what_was_not_run_says_so(tmp_path):
    text = page.text(tmp_path)
    rows = sum(len(suite.checks) for suite in page.SUITES)
    assert text.count("| not run yet |") == rows
    assert text.count("Not run yet.") == 4


def test_the_newest_result_counts_and_names_its_machine(tmp_path):
    again = MACHINE | {"date": "2030-02-03", "command": "python -m tests.gpu.correct --only T7"}
    text = written(
        tmp_path, MACHINE, line("T7", "FAIL", "apart | by 1e-2"), line("T8", "ok", "fine"), again, line("T7", "ok", "1e-06\nmore", 3.4),
        line("T8", "not run", "0 s were left"),
    )  # fmt: skip
    assert "| T7 |" in text
    assert "| ok: 1e-06 (2) | 3 |" in text
    assert "| ok: fine (1) | 1 |" in text
    assert "apart" not in text.split("## Several")[0].split("| T7 |")[1]
    assert ("1. NVIDIA H100 (79.6 GiB), driver 570.1, PyTorch 2.14.1, CUDA 13.0, NCCL 2.30.7, Python 3.12.3, cores: 16, "
            "on 2030-01-02: `python -m tests.gpu.correct`") in text  # fmt: skip
    assert "2. NVIDIA H100" in text


def test_lines_brought_from_elsewhere_are_added_once(tmp_path):
    own, brought = tmp_path / "own", tmp_path / "brought"
    for folder, value in ((own, "here"), (brought, "there")):
        folder.mkdir()
        written(folder, MACHINE, line("T7", "ok", value))
    for _ in range(2):
        page.add(brought, own)
    with (brought / "correct.jsonl").open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in (MACHINE, line("T7", "ok", "later")))
    page.add(brought, own)
    lines = [json.loads(text) for text in (own / "correct.jsonl").read_text().splitlines()]
    assert [one["value"] for one in lines if one["kind"] == "check"] == ["here", "there", "later"]
    assert "| ok: later | 1 |" in page.text(own)
    assert [path.name for path in own.iterdir()] == ["correct.jsonl"]


@pytest.mark.parametrize("machine", [MACHINE | {"gpu": ""}, MACHINE | {"toy": True}])
def test_what_was_found_elsewhere_or_at_toy_sizes_is_not_shown(tmp_path, machine):
    assert "ok: found" not in written(tmp_path, machine, line("T7", "ok", "found"))
    assert "ok: found" in written(tmp_path, MACHINE, line("T7", "ok", "found"))


def test_each_command_fits_its_nine_minutes_and_the_first_ones_ten_in_all():
    suites = (CORRECT, RANKS, SPEED, MORE)
    assert all(sum(check.about_s for check in suite.checks) <= 9 * 60 for suite in suites)
    first = [check for suite in suites for check in in_order(suite.checks) if check.first]
    assert [check.name for check in first] == ["T0", "T3", "T4", "T5", "T6", "R1", "R2", "S1", "S2"]
    assert sum(check.about_s for check in first) <= 600
    names = [check.name for suite in suites for check in suite.checks]
    assert names == list(dict.fromkeys(names))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_name_of_torch_is_one(path: Path):
    """Most of them stand in branches that no machine without a GPU goes through."""
    chains = {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    unknown = []
    for chain in chains:
        first, *rest = chain.split(".")
        if first != "torch" or not all(name.isidentifier() for name in rest):
            continue
        found = torch
        for name in rest:
            found = getattr(found, name, None)
            if found is None and chain != "torch.version.cuda":
                unknown.append(chain)
                break
    assert unknown == []
