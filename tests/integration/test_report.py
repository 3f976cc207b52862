"""The report: its figures, and that no name a run can have is read as anything but text."""

import json
import re

import numpy as np
import pytest

import distcnn
from distcnn.errors import InputError
from distcnn.report.page import differing, page
from distcnn.runs.history import read_history
from distcnn.runs.predictions import load_predictions

TINY = {
    "data": {"source": "synthetic", "args": {"train": 100, "test": 60}, "image_size": 16}, "optim.lr": 0.01,
    "train": {"duration": "1ep", "batch_size": 10, "threads": 1}, "model": {"name": "resnet9", "args": {"width": 4}},
    "tracking": {"wandb": "disabled", "console": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return distcnn.train(TINY, {"output_dir": str(tmp_path_factory.mktemp("runs"))})


def shown(text):
    """The figures that a page holds."""
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def test_a_run_writes_its_report_and_keeps_what_its_evaluation_saw(result):
    text = (result.folder / "report.html").read_text(encoding="utf-8")
    assert len(text) < 6e6
    assert [figure["id"] for figure in shown(text)] == ["loss", "accuracy", "lr", "speed", "confusion", "reliability"]
    assert f"{result.evaluation.accuracy:.2%}" in text
    assert "ran to its end" in text
    kept = load_predictions(result.folder / "predictions.npz")
    assert np.array_equal(kept.best, result.evaluation.best)
    assert np.array_equal(kept.probabilities, result.evaluation.probabilities)
    wrong = kept.best[:, 0] != kept.labels
    assert wrong.sum() == 60 - result.evaluation.correct
    assert wrong[kept.mistakes].all()
    assert (np.diff(kept.probabilities[kept.mistakes, 0]) <= 0).all()


def test_nothing_outside_the_file_is_asked_for(result):
    text = (
        (result.folder / "report.html").read_text(encoding="utf-8").split('<script type="text/plain" id="plotly">')[0]
    )
    assert re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', text) == []


def test_a_run_that_died_and_one_without_an_evaluation_are_reported(result, tmp_path):
    lines = (result.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:5]) + lines[5][:20])  # torn
    run = read_history(tmp_path)
    assert (run.state, run.step) == ("died", 4)
    text = page([run])
    assert "died without logging its end" in text
    assert [figure["id"] for figure in shown(text)] == ["loss", "accuracy", "lr", "speed"]
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="nothing is logged"):
        page([read_history(tmp_path)])


def test_a_restart_is_marked_where_it_was(result, tmp_path):
    lines = (result.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    resumed = {"kind": "event", "event": "resumed", "step": 4, "message": "at step 4", "time": 1e9}
    (tmp_path / "metrics.jsonl").write_text("".join([*lines[:5], json.dumps(resumed) + "\n", *lines[5:]]))
    text = page([read_history(tmp_path)])
    assert [shape["x0"] for shape in shown(text)[0]["layout"]["shapes"]] == [4]
    assert "2001-09-09 01:46:40 UTC" in text


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "x" * 300,
    "שלום \u202eabc",
    "{{ 7 * 7 }}",
    "a</script>b",
)


def test_hostile_names_are_text(result, tmp_path):
    records = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    names = [*HOSTILE, *"ghij"]
    for record in records:
        if record["kind"] == "eval":
            record["per_class"] = dict(zip(names, record["per_class"].values(), strict=True))
        if record["kind"] == "event":
            record["message"] = HOSTILE[0]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    kept = dict(np.load(result.folder / "predictions.npz"))
    kept["files"] = np.array([HOSTILE[1]] * len(kept["mistakes"]))
    np.savez(tmp_path / "predictions.npz", **kept)
    (tmp_path / "config.yaml").write_text("name: '<b>bold</b>'\n")
    text = page([read_history(tmp_path)]).split('<script type="text/plain" id="plotly">')[0]
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "<b>bold" not in text
    assert "<bdi>{{ 7 * 7 }}</bdi>" in text
    assert "49</bdi>" not in text
    assert "&lt;script&gt;alert(1)" in text
    labels = shown(text)[4]["traces"][0]["x"]  # plotly.js reads tags in them
    assert all("<" not in label for label in labels)
    assert max(map(len, labels)) < 60


def test_several_runs_lie_over_each_other_with_what_differs(result, tmp_path):
    other = distcnn.train(TINY | {"optim.lr": 0.02, "seed": 1}, {"output_dir": str(tmp_path), "name": "other"})
    runs = [read_history(one.folder) for one in (result, other)]
    text = page(runs)
    assert [key for key, _ in differing([run.settings for run in runs])] == ["seed", "output_dir", "optim.lr"]
    assert re.search(r"optim\.lr</th><td[^>]*><bdi>0\.01</bdi></td><td[^>]*><bdi>0\.02<", text)
    loss = shown(text)[0]
    assert len({trace["group"] for trace in loss["traces"]}) == 2
    assert len(loss["traces"]) == 4  # training and test of each


def test_damaged_predictions_cost_a_sentence(result, tmp_path):
    for name in ("metrics.jsonl", "config.yaml"):
        (tmp_path / name).write_bytes((result.folder / name).read_bytes())
    (tmp_path / "predictions.npz").write_bytes(b"PK junk")
    text = page([read_history(tmp_path)])
    assert "predictions.npz: damaged" in text
    assert [figure["id"] for figure in shown(text)][-1] == "confusion"
