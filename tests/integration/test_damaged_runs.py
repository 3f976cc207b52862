"""Damaged runs, in processes of their own: no permission, no torch, and trials that find one in their way."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.needs import require
from tests.ranks import run_ranks
from tests.written_runs import make

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Three good runs, and one each with a damaged config, a torn log and no permission; others may enter it."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)
        for name in ("a", "b", "c", "config", "torn", "closed"):
            make(folder / name)
        (folder / "config" / "config.yaml").write_text("x: [")
        log = folder / "torn" / "metrics.jsonl"
        log.write_bytes(log.read_bytes()[:-9])
        (folder / "closed").chmod(0)
        yield folder
        (folder / "closed").chmod(0o700)


def test_six_runs_of_which_three_are_damaged_are_six_rows(folder):
    require("setpriv", root=True)
    outcome = run_ranks(["runs", folder, "--sort", "name"], within=NOBODY)
    assert outcome.codes == [0], outcome.err
    states = {line.split()[0]: line.split()[1] for line in outcome.out.splitlines()[1:]}
    assert states == {
        "a": "done", "b": "done", "c": "done", "config": "done", "torn": "died", "closed": "unreadable",
    }  # fmt: skip
    assert outcome.out.count("Permission denied") == 2  # of its log and its config
    assert outcome.out.count("config.yaml: not readable as YAML") == 1


@pytest.mark.parametrize("command", ["runs", "report"])
def test_reading_files_imports_no_torch(folder, command):
    arguments = {"runs": ["runs", folder], "report": ["report", folder / "a", folder / "b", "--output", folder / "x"]}
    outcome = run_ranks(arguments[command], program=("-X", "importtime", "-m", "distcnn"))
    assert outcome.codes == [0], outcome.err
    imported = {line.rpartition("|")[2].strip() for line in outcome.err.splitlines() if line.startswith("import time:")}
    assert "distcnn.runs.history" in imported
    assert not {"torch", "torchvision"} & imported


def test_a_damaged_trial_is_one_message_before_any_starts(tmp_path):
    config = tmp_path / "x.yaml"
    config.write_text(f"output_dir: {tmp_path / 'runs'}\ndata: {{source: synthetic}}\ntracking: {{wandb: disabled}}\n")
    (tmp_path / "runs").mkdir()
    (make(tmp_path / "runs" / "x-seed1") / "config.yaml").write_text("")
    (tmp_path / "runs" / "x-seed2" / "metrics.jsonl").mkdir(parents=True)
    outcome = run_ranks(["trials", config, "-n", "4"])
    assert outcome.codes == [2], outcome.err
    assert "x-seed1: config.yaml: empty; give another --name" in outcome.err
    assert "x-seed2: metrics.jsonl: Is a directory" in outcome.err
    assert "Traceback" not in outcome.err
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"x-seed1", "x-seed2"}
