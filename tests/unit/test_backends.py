"""A user's own tracker: in a file or an installed package, named in the config; what it gets, and what it cannot harm."""

import csv
import sys

import pytest

import distcnn
from distcnn.errors import InputError
from distcnn.tracking import TRACKERS
from distcnn.tracking.backend import numbers
from tests.packages import install
from tests.records import metrics

SMALL = {
    "name": "run", "data": {"source": "synthetic", "args": {"train": 60, "test": 20}, "image_size": 16},
    "model": {"name": "compact_cnn"}, "optim": {"lr": 0.02},
    "train": {"duration": "2ep", "batch_size": 20, "threads": 1, "device": "cpu"}, "checkpoint": {"every": "1step"},
    "tracking": {"wandb": "disabled", "console": False, "report": False},
}  # fmt: skip

MINE = '''
import csv
from typing import Annotated
from pydantic import Field

class CsvTracker:
    """All numbers, a line each, in a file of the run's folder."""

    def __init__(self, run, *, file: Annotated[str, Field(pattern=r"\\.csv$")] = "numbers.csv"):
        self.file = (run.folder / file).open("w", newline="")
        self.writer = csv.writer(self.file)

    def log(self, values, step):
        self.writer.writerows([step, name, value] for name, value in values.items())

    def finish(self, status, summary):
        self.writer.writerow([summary["accuracy"], "status", status])
        self.file.close()


class Holding(CsvTracker):
    def refill(self, history):
        self.writer.writerow([len(list(history)), "refill", self.file.name])


class Faulty:
    def __init__(self, run, *, where: str):
        self.where = where
        self.fail("init")

    def fail(self, where):
        if where == self.where:
            raise RuntimeError(f"no {where}")

    def log(self, values, step):
        self.fail("log")

    def finish(self, status, summary):
        self.fail("finish")
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with a tracker."""
    points = {"distcnn.trackers": {"csv": "lib_of_trackers:CsvTracker"}}
    install(tmp_path, "lib_of_trackers", {"lib_of_trackers.py": MINE}, points)
    monkeypatch.syspath_prepend(tmp_path)
    vars(TRACKERS).pop("targets", None)  # of the packages that were installed before
    yield
    vars(TRACKERS).pop("targets", None)
    sys.modules.pop("lib_of_trackers", None)


def train(tmp_path, backends, **overrides):
    return distcnn.train(
        SMALL, {"output_dir": str(tmp_path / "runs"), "tracking.backends": backends, **overrides}
    ).folder


def rows(file):
    with file.open(newline="") as lines:
        return [(int(step), name, value) for step, name, value in csv.reader(lines) if name not in ("status", "refill")]


def logged(folder):
    """The numbers of metrics.jsonl."""
    found = []
    for line in metrics(folder):
        if line["kind"] == "event":
            continue
        prefix = {"train": "train", "eval": "test"}[line["kind"]]
        for key, value in line.items():
            if key == "per_class":
                found += [
                    (line["step"], f"test/per_class/{name}", str(one)) for name, one in value.items() if one is not None
                ]
            elif key not in ("kind", "step", "epoch", "split", "confusion"):
                found.append((line["step"], f"{prefix}/{key}", str(value)))
        found.append((line["step"], "epoch", str(line["epoch"])))
    return found


def test_an_installed_packages_tracker_gets_all_numbers_of_the_log(tmp_path, package):
    folder = train(tmp_path, [{"csv": {"file": "mine.csv"}}])
    assert rows(folder / "mine.csv") == logged(folder)
    assert len(metrics(folder, "train")) == 6
    accuracy = metrics(folder, "eval")[-1]
    wanted = f"{accuracy['accuracy']:.2%} ({accuracy['correct']} of {accuracy['total']} test images),status,done"
    assert (folder / "mine.csv").read_text().splitlines()[-1] == wanted


def test_after_a_resume_a_tracker_of_three_methods_holds_the_complete_run(tmp_path, package):
    train(tmp_path, "lib_of_trackers:CsvTracker", **{"train.duration": "4step"})
    folder = train(tmp_path, "lib_of_trackers:CsvTracker", **{"checkpoint.resume": "auto"})
    assert [event["event"] for event in metrics(folder, "event")] == ["started", "done", "resumed", "done"]
    assert rows(folder / "numbers.csv") == logged(folder)
    assert {step for step, *_ in rows(folder / "numbers.csv")} == {1, 2, 3, 4, 5, 6}


def test_a_tracker_that_holds_earlier_steps_is_asked_to_refill(tmp_path, package):
    train(tmp_path, "lib_of_trackers:Holding", **{"train.duration": "4step"})
    assert (tmp_path / "runs/run/numbers.csv").read_text().startswith("0,refill,")
    folder = train(tmp_path, "lib_of_trackers:Holding", **{"checkpoint.resume": "auto"})
    first = [line for line in metrics(folder) if line["kind"] != "event" and line["step"] <= 4]
    assert (folder / "numbers.csv").read_text().startswith(f"{len(first)},refill,")
    assert {step for step, *_ in rows(folder / "numbers.csv")} == {5, 6}


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_faulty_tracker_costs_one_warning(tmp_path, package, capsys, where):
    folder = train(tmp_path, [{"lib_of_trackers:Faulty": {"where": where}}, "csv"])
    assert metrics(folder)[-1]["event"] == "done"
    assert rows(folder / "numbers.csv")
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warning == (
        f"warning: lib_of_trackers:Faulty failed (RuntimeError: no {where}); "
        "training continues, and metrics.jsonl is complete"
    )


@pytest.mark.parametrize(
    ("backends", "text"),
    [
        ("tensorbord", "unknown; did you mean tensorboard? valid: wandb, tensorboard, trackio, csv, or your own"),
        ("lib_of_trackers:Missing", "has no attribute 'Missing'"),
        ([{"csv": {"file": "mine.txt"}}], r"csv: file: String should match pattern '\.csv$'"),
        ([{"csv": {"name": "mine.csv"}}], "csv: name: unknown argument; it takes file"),
        (["lib_of_trackers:Faulty"], "lib_of_trackers:Faulty: where: has to be given"),
        (["csv", {"csv": {"file": "x.csv"}}], "csv is given twice"),
        ([{"csv": {}, "trackio": {}}], "one name with its arguments"),
    ],
)
def test_what_is_wrong_with_the_backends_is_said_before_the_run(tmp_path, package, backends, text):
    with pytest.raises(InputError, match=r"tracking\.backends") as caught:
        train(tmp_path, backends)
    assert text in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_wandb_that_is_asked_for_has_to_be_among_the_backends(tmp_path):
    with pytest.raises(InputError, match=r"tracking\.wandb = offline .*tracking\.backends = .*add it to them"):
        train(tmp_path, "tensorboard", **{"tracking.wandb": "offline"})


@pytest.mark.parametrize(("name", "key"), [("tensorboard", "backends"), ("trackio", "backends"), ("wandb", "wandb")])
def test_a_library_that_is_not_installed_is_named_with_its_installation(tmp_path, monkeypatch, name, key):
    monkeypatch.setattr("distcnn.text.find_spec", lambda module: None)
    with pytest.raises(InputError, match=rf"tracking\.{key} = .*pip install 'distcnn\[{name}\]'"):
        train(tmp_path, name, **({"tracking.wandb": "offline"} if name == "wandb" else {}))


def test_all_that_is_a_number_in_a_record_is_given_by_its_name():
    record = {"kind": "eval", "split": "test", "step": 4, "epoch": 2, "loss": None, "f1": 0.5, "exact": True, "total": 7,
              "confusion": [[1]], "per_class": {"cat": 0.25, "dog": None}, "mine": {"deep": {"er": 1}}}  # fmt: skip
    assert numbers(record) == {
        "test/f1": 0.5, "test/total": 7, "test/per_class/cat": 0.25, "test/mine/deep/er": 1, "epoch": 2,
    }  # fmt: skip
    assert numbers({"kind": "train", "step": 1, "loss": 1.5, "mine": 3}) == {"train/loss": 1.5, "train/mine": 3}
    assert numbers({"kind": "event", "event": "done", "step": 1, "time": 1.0}) == {}
