"""A run's folder read back: what is damaged is said, and the rest is shown. The folders are written by hand."""

import json
import os
import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from distcnn.checkpoint.state import ModelDescription
from distcnn.cli import main
from distcnn.commands import runs
from distcnn.config.schema import CheckpointConfig, Config
from distcnn.data.normalize import Normalize
from distcnn.errors import InputError
from distcnn.inference.card import card
from distcnn.report.page import page
from distcnn.runs import history
from distcnn.runs.folder import run_folder
from distcnn.runs.history import read_history
from distcnn.runs.predictions import PREDICTIONS, Predictions, load_predictions, write_predictions
from distcnn.runs.records import parse_record
from tests.written_runs import CONFIG, DONE, EVAL, RECORDS, START, TRAIN, lines, make, replaced

DAMAGED_CONFIGS = {
    "bad syntax": (lambda path: path.write_text("x: ["), "not readable as YAML"),
    "empty": (lambda path: path.write_text(""), "empty"),
    "list": (lambda path: path.write_text("[1, 2]"), "not a list"),
    "not UTF-8": (lambda path: path.write_bytes(b"name: \xe4\n"), "can't decode byte 0xe4"),
    "zeros of a power cut": (lambda path: path.write_bytes(bytes(500)), "not readable as YAML"),
    "alias bomb": (lambda path: path.write_text("a: &a [1, 1]\nb: [*a, *a]\n"), "aliases"),
    "deep": (lambda path: path.write_text("a: " + "[" * 9000), "more than 20 levels"),
    "huge": (lambda path: path.write_text(f"a: [{'1, ' * 999_999}1]"), "larger than 128 kB"),
    "tag": (lambda path: path.write_text("seed: !!bool perhaps\n"), "does not fit its tag"),
    "section": (lambda path: path.write_text("train: 5\n"), "train should be a section"),
    "too long to print": (lambda path: path.write_text(f"seed: 0x{'f' * 6000}\n"), "an integer of 2^63 or more"),
    "negative": (lambda path: path.write_text(f"model: {{args: {{x: [{-(2**63)}]}}}}\n"), "an integer of 2^63 or more"),
    "key": (lambda path: path.write_text(f"model: {{args: {{? 0x{'f' * 6000} : 1}}}}\n"), "an integer of 2^63 or more"),
    "absent": (lambda path: path.unlink(), "No such file"),
    "link to nothing": (lambda path: replaced(path, lambda p: p.symlink_to("gone")), "No such file"),
    "link to itself": (lambda path: replaced(path, lambda p: p.symlink_to(p.name)), "symbolic links"),
    "folder": (lambda path: replaced(path, lambda p: p.mkdir()), "directory"),
    "pipe": (lambda path: replaced(path, os.mkfifo), "Not a regular file"),
}
UNREADABLE_LOGS = {
    "folder": (lambda path: path.mkdir(), "directory"),
    "link to nothing": (lambda path: path.symlink_to("gone"), "a link to nothing"),
    "link to itself": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "pipe": (os.mkfifo, "Not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "Not a regular file"),
}


def rows(capsys, *arguments):
    """By name; JSON's own NaN, which no other program reads, is a failure."""
    assert main(["runs", *map(str, arguments), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda text: pytest.fail(text))
    return {row["name"]: row for row in found}


@pytest.mark.parametrize("kind", DAMAGED_CONFIGS)
def test_a_damaged_config_costs_the_settings_alone(tmp_path, capsys, kind):
    damage, said = DAMAGED_CONFIGS[kind]
    make(tmp_path / "good")
    damage(make(tmp_path / "bad") / "config.yaml")
    found = rows(capsys, tmp_path, "--show", "seed")
    assert {name: row["seed"] for name, row in found.items()} == {"good": 7, "bad": None}
    for key in ("state", "step", "steps", "accuracy", "best", "loss", "images_per_s"):
        assert found["bad"][key] == found["good"][key] is not None
    assert found["good"]["why"] == ""
    assert found["bad"]["why"].startswith("config.yaml: ")
    assert said in found["bad"]["why"]
    assert "cat" in page([read_history(tmp_path / "bad")])


@pytest.mark.parametrize("kind", UNREADABLE_LOGS)
def test_an_unreadable_log_is_a_row_that_says_so(tmp_path, capsys, kind):
    damage, said = UNREADABLE_LOGS[kind]
    make(tmp_path / "good")
    replaced(make(tmp_path / "bad") / "metrics.jsonl", damage)
    found = rows(capsys, tmp_path, "--show", "seed")
    assert (found["good"]["state"], found["bad"]["state"]) == ("done", "unreadable")
    assert said in found["bad"]["why"]
    assert found["bad"]["seed"] == 7
    assert [found["bad"][key] for key in ("step", "accuracy", "updated")] == [None, None, None]
    assert [*rows(capsys, tmp_path, "--state", "unreadable")] == ["bad"]
    assert [*rows(capsys, tmp_path, "--where", "seed=7", "--sort", "loss")] == ["good", "bad"]


def test_damaged_lines_are_left_out_and_counted_but_for_one_that_is_being_written(tmp_path, capsys):
    folder = make(tmp_path / "run")
    log = folder / "metrics.jsonl"
    written = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(written[:-1]) + written[-1][:-9])
    found = read_history(folder)
    assert (found.records, found.state, found.damage) == (RECORDS[:-1], "died", ())
    log.write_bytes(b"".join([written[0], bytes(700), b"\n", *written[2:4], b"{\n", *written[4:]]))
    found = read_history(folder)
    assert (found.records, found.state) == ([START, *RECORDS[2:]], "done")
    assert found.damage == ("metrics.jsonl: 2 damaged lines left out",)
    assert rows(capsys, tmp_path)["run"]["why"] == found.damage[0]


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "new", "step": 1}, {**TRAIN, "step": 10**400}, {**TRAIN, "step": -1}, {**TRAIN, "step": True},
        {**TRAIN, "lr": float("nan")}, {**TRAIN, "loss": "2"}, {**TRAIN, "slowest_rank": None}, {**EVAL, "accuracy": None},
        {**EVAL, "per_class": [0.5]}, {**EVAL, "split": 3}, {"kind": "event", "step": 1}, {**DONE, "message": 5},
        {**DONE, "time": 1e300}, {**START, "environment": []}, {**START, "environment": {"plan": {"steps": "3"}}},
        {**START, "environment": {"plan": {}, "versions": 3}}, ["kind"], "kind", None,
    ],
)  # fmt: skip
def test_a_line_that_would_break_a_reader_is_no_record(record):
    assert parse_record(json.dumps(record).encode()) is None


@pytest.mark.parametrize(
    "record", [*RECORDS, {**EVAL, "loss": None}, {**TRAIN, "new": [1]}, {**DONE, "message": "\udcff"}]
)
def test_what_a_run_writes_is_a_record(record):
    assert parse_record(json.dumps(record).encode()) == record


def test_settings_that_json_cannot_hold_are_shown_as_texts(tmp_path, capsys):
    make(
        tmp_path / "run",
        config="seed: 2020-01-31\noptim: {lr: .inf}\nmodel: {args: {1: !!set {a}, b: !!binary aGk=}}\n",
    )
    found = rows(capsys, tmp_path, "--show", "seed", "optim.lr", "model.args")["run"]
    assert (found["seed"], found["optim.lr"]) == ("2020-01-31", "inf")
    assert found["model.args"] == {"1": ["a"], "b": "b'hi'"}


def test_the_largest_integers_are_shown_as_they_are(tmp_path, capsys):
    make(tmp_path / "run", config=f"seed: {2**63 - 1}\noptim: {{lr: {1 - 2**63}}}\n")
    found = rows(capsys, tmp_path, "--show", "seed", "optim.lr")["run"]
    assert (found["seed"], found["optim.lr"]) == (2**63 - 1, 1 - 2**63)


def test_what_where_cannot_judge_is_named(tmp_path, capsys):
    make(tmp_path / "good")
    make(tmp_path / "bad", config="x: [")
    assert main(["runs", str(tmp_path), "--where", "seed=7", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [row["name"] for row in json.loads(out)] == ["good"]
    assert err == "warning: --where leaves out bad: no readable config\n"


def test_what_is_no_run_is_no_row(tmp_path, capsys):
    make(tmp_path / "run")
    (tmp_path / "x-trials.json").write_text("{}")
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to("gone")
    assert [*rows(capsys, tmp_path)] == ["run"]
    with pytest.raises(InputError, match="it holds no"):
        read_history(tmp_path / "other")


@pytest.mark.parametrize("gone", ["run", "run/metrics.jsonl"])
def test_a_run_that_vanishes_while_it_is_listed_is_no_row(tmp_path, capsys, monkeypatch, gone):
    def late(folder):
        if folder.name == "run":
            shutil.rmtree(folder) if gone == "run" else (tmp_path / gone).unlink()
        return read_history(folder)

    monkeypatch.setattr(runs, "read_history", late)
    for name in ("a", "run", "z"):
        make(tmp_path / name)
    assert [*rows(capsys, tmp_path, "--sort", "name")] == ["a", "z"]


def test_a_folder_that_vanishes_while_it_is_read_is_read_as_far_as_it_was(tmp_path, monkeypatch):
    def late(lines):
        found = read(lines)
        shutil.rmtree(tmp_path / "run")
        return found

    read = history._records
    monkeypatch.setattr(history, "_records", late)
    found = read_history(make(tmp_path / "run"))
    assert (found.records, found.settings) == (RECORDS, {})
    assert found.damage == ("config.yaml: No such file or directory",)
    assert (found.state, load_predictions(found.folder / PREDICTIONS)) == ("done", None)


def test_a_folder_that_cannot_be_listed_is_bad_input(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["runs", str(tmp_path / "file")]) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_a_report_of_several_names_the_damaged_ones(tmp_path, capsys):
    good, other = make(tmp_path / "good"), make(tmp_path / "other", config=CONFIG.replace("7", "8"))
    config, log = make(tmp_path / "config"), make(tmp_path / "log")
    (config / "config.yaml").write_text("x: [")
    replaced(log / "metrics.jsonl", lambda path: path.mkdir())
    output = tmp_path / "all.html"
    assert main(["report", *map(str, (good, other, config, log)), "--output", str(output)]) == 0
    text, err = output.read_text(encoding="utf-8").split('<script type="application/json"')[0], capsys.readouterr().err
    for name in ("config", "log"):
        assert f"<bdi>{name}</bdi> is damaged: " in text
        assert f"warning: {tmp_path / name}: " in err
    assert text.count("is damaged") == 2
    assert "<bdi>log</bdi> has a log that cannot be read" in text
    heads = text.split('aria-label="Differences between the configs"')[1].split("</thead>")[0]
    assert [name in heads for name in ("good", "other", "config", "log")] == [True, True, False, True]


def test_a_report_of_nothing_that_can_be_read_is_bad_input(tmp_path, capsys):
    log, empty = make(tmp_path / "log"), make(tmp_path / "empty", records=[])
    replaced(log / "metrics.jsonl", lambda path: path.mkdir())
    assert main(["report", str(log), str(empty), "--output", str(tmp_path / "x.html")]) == 2
    err = capsys.readouterr().err
    assert f"{log}: metrics.jsonl: Is a directory\n" in err
    assert f"{empty}: nothing is logged yet\n" in err
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize(
    "odd",
    [{"confusion": [[1, "a"], [2]]}, {"confusion": []}, {"per_class": {"cat": 1}}, {"confusion": [[-1, 0], [0, 1]]}],
)
def test_a_confusion_matrix_that_does_not_fit_costs_a_sentence(tmp_path, odd):
    folder = make(tmp_path / "run", [START, *RECORDS[1:4], EVAL | odd, DONE])
    assert "no confusion matrix that fits" in page([read_history(folder)])


KEPT = Predictions(
    3, np.array([0, 0, 1, 1]), np.array([[0, 1], [1, 0], [1, 0], [1, 0]]), np.full((4, 2), 0.5, np.float32),
    np.array([1]), np.zeros((1, 4, 4, 3), np.uint8), ("a.png",),
)  # fmt: skip


def test_predictions_come_back_as_they_were(tmp_path):
    write_predictions(tmp_path / "predictions.npz", KEPT)
    found = load_predictions(tmp_path / "predictions.npz")
    for name, value in vars(KEPT).items():
        assert np.array_equal(getattr(found, name), value), name
    assert load_predictions(tmp_path / "no.npz") is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": np.zeros(3, np.int64)}, "for 3 images"), ({"mistakes": np.array([9])}, "beyond the 4"),
        ({"thumbnails": np.zeros((2, 4, 4, 3), np.uint8)}, "thumbnails of shape"),
        ({"thumbnails": np.zeros((1, 4, 4), np.uint8)}, "thumbnails of shape"), ({"files": np.array(["a", "b"])}, "thumbnails"),
        ({"best": KEPT.best + 5}, "are not those of the run"),
    ],
)  # fmt: skip
def test_predictions_that_do_not_fit_cost_a_sentence(tmp_path, changes, said):
    folder = make(tmp_path / "run")
    np.savez(folder / "predictions.npz", **vars(KEPT) | {"files": np.array(KEPT.files)} | changes)
    text = page([read_history(folder)])
    assert said in text
    assert "The most confident errors" not in text


def test_predictions_are_not_unpacked_to_any_size(tmp_path):
    path = tmp_path / "predictions.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.npy", bytes(10**6))
    with pytest.raises(InputError, match="compressed"):
        load_predictions(path)


def test_the_model_card_takes_an_evaluation_that_its_log_has_whole(tmp_path):
    trained = SimpleNamespace(
        path=tmp_path / "run" / "checkpoints" / "best.pt", config=Config(),
        description=ModelDescription({}, ("cat", "dog"), 32, Normalize((0.5,) * 3, (0.5,) * 3), step=3, epoch=1),
    )  # fmt: skip
    assert "holds no evaluation" in card(trained, "run", {}, 0)
    make(tmp_path / "run", [START, EVAL])  # without the top-5 accuracy
    assert "holds no evaluation" in card(trained, "run", {}, 0)
    whole = EVAL | {"top5_accuracy": 1.0}
    for loss, said in ((1.5, "loss 1.5000"), (None, "loss not finite")):
        (tmp_path / "run" / "metrics.jsonl").write_text(lines([START, whole | {"loss": loss}]))
        text = card(trained, "run", {}, 0)
        assert f"75.00% (3 of 4) of the test images, {said}" in text
        assert ("type: loss" in text) == (loss is not None)


def test_a_damaged_owner_keeps_no_run_from_starting(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / ".owner").write_bytes(b"\xff")
    config = Config(name="x", output_dir=str(tmp_path), checkpoint=CheckpointConfig(resume="auto"))
    with run_folder(config) as folder:
        assert folder == tmp_path / "x"
