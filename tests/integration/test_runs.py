"""distcnn runs: every state is told from the folder alone, and the table can be sorted and filtered."""

import json
import signal

import pytest

import distcnn
from distcnn.cli import main
from distcnn.runs.history import read_history
from tests.ranks import start
from tests.records import steps

TINY = {
    "data": {"source": "synthetic", "args": {"train": 100, "test": 20}, "image_size": 16}, "optim.lr": 0.01,
    "train": {"duration": "1ep", "batch_size": 10, "threads": 1}, "model": {"name": "resnet9", "args": {"width": 4}},
    "tracking": {"wandb": "disabled", "console": False, "report": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of each state but running."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "not a run").mkdir()
    for name, changes in (("done", {}), ("done-2", {"seed": 1, "optim.lr": 0.02})):
        distcnn.train(TINY | changes, {"output_dir": str(folder), "name": name})
    with pytest.raises(distcnn.DistcnnError, match="the loss is"):
        distcnn.train(TINY, {"output_dir": str(folder), "name": "failed", "optim.lr": 1e30})
    for name, number in (("preempted", signal.SIGTERM), ("interrupted", signal.SIGINT), ("died", signal.SIGKILL)):
        with begun(folder, name) as run:
            run[0].send_signal(number)
            run.wait()
    return folder


def begun(folder, name):
    """A long run that has begun."""
    config = folder.parent / f"{name}.yaml"
    config.write_text(json.dumps({key: value for key, value in TINY.items() if key != "optim.lr"}))
    run = start(["train", config, "--output_dir", folder, "--train.duration", "9999ep"])
    run.until(lambda: steps(folder / name))
    return run


def rows(capsys, *arguments):
    assert main(["runs", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_each_state_is_told_from_the_folder(folder, capsys):
    found = {row["name"]: row for row in rows(capsys, folder)}
    assert {name: row["state"] for name, row in found.items()} == {
        "done": "done", "done-2": "done", "failed": "failed", "preempted": "preempted", "interrupted": "interrupted", "died": "died",
    }  # fmt: skip
    assert "NonFiniteLossError: the loss is" in found["failed"]["why"]
    assert "SIGTERM" in found["preempted"]["why"]
    assert (found["done"]["step"], found["done"]["steps"]) == (10, 10)


def test_a_run_is_running_while_its_process_lives(tmp_path):
    with begun(tmp_path, "alive"):
        assert read_history(tmp_path / "alive").state == "running"
    assert read_history(tmp_path / "alive").state == "died"


def test_rows_are_sorted_and_chosen(folder, capsys):
    assert [row["name"] for row in rows(capsys, folder, "--sort", "name", "--top", "2")] == ["died", "done"]
    speeds = [
        row["images_per_s"] for row in rows(capsys, folder, "--sort", "images_per_s", "--reverse", "--state", "done")
    ]
    assert speeds == sorted(speeds)
    (only,) = rows(capsys, folder, "--where", "optim.lr=0.02", "seed=1", "--show", "model.args")
    assert (only["name"], only["model.args"]) == ("done-2", {"width": 4})
    assert rows(capsys, folder, "--name", "done*", "--state", "failed", "died") == []


def test_the_table_shows_why(folder, capsys):
    assert main(["runs", str(folder), "--state", "failed"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "state", "step", "accuracy", "best", "loss", "images/s", "updated", "why"]
    assert "failed  10 of 10" in line
    assert "NonFiniteLossError: the loss is nan" in line


def test_bad_requests_are_told_all_at_once(tmp_path, capsys):
    arguments = ["--sort", "size", "--state", "lost", "--where", "lr=1", "--show", "lr", "--top", "0"]
    assert main(["runs", str(tmp_path / "no"), *arguments]) == 2
    err = capsys.readouterr().err
    for problem in ("no such folder", "--sort size", "--state lost", "--where lr=1", "--show lr", "--top 0"):
        assert problem in err
