"""The report: its figures, and that no name a run can have is read as anything but text."""

import json
import re

import numpy as np
import pytest

import distcnn
from distcnn.errors import BadInput
from distcnn.history import read_history
from distcnn.report import figures
from distcnn.report.page import HERE, _per_class, differing, page
from distcnn.predictions import Predictions, load_predictions

TINY = {
    "data": {"source": "synthetic", "synthetic_train": 100, "synthetic_test": 60, "image_size": 16}, "optim.lr": 0.01,
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
    assert "ended without a word" in text
    assert [figure["id"] for figure in shown(text)] == ["loss", "accuracy", "lr", "speed"]
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(BadInput, match="nothing is logged"):
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
    assert "49" not in re.sub(r"[^{} \d]", "", text.split("{{ 7 * 7 }}")[0])[-3:]
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


def test_precision_recall_and_f1_are_those_of_scikit_learn():
    from sklearn import metrics

    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 4, 50), rng.integers(0, 4, 50)
    counts = np.zeros((5, 5), np.int64)  # no image of the last class, which is never predicted
    np.add.at(counts, (true, predicted), 1)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(true, predicted)
    *rows, absent = _per_class("abcde", counts)
    for i, row in enumerate(rows):
        assert (row["precision"], row["recall"], row["f1"], row["images"]) == pytest.approx(
            (precision[i], recall[i], f1[i], support[i])
        )
    assert absent == {"name": "e", "images": 0, "precision": None, "recall": None, "f1": None}


def test_the_calibration_error_is_that_of_a_plain_computation():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.1, 1, 500).astype(np.float32)
    right = rng.uniform(size=500) < sure**2
    best = np.where(right, 1, 0)[:, None]
    found = Predictions(1, np.ones(500, np.int64), best, sure[:, None], np.array([]), np.array([]), ())
    error = 0.0
    for i in range(figures.BINS):
        inside = (sure * figures.BINS).astype(int) == i
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    figure, measured = figures.reliability(found)
    assert measured == pytest.approx(error, rel=1e-5)
    assert sum(count for count, _ in figure["traces"][0]["customdata"]) == 500


def test_a_long_curve_is_thinned_to_means_and_smoothing_forgets_its_start():
    steps = np.arange(100_000.0)
    line = figures._line(steps, steps * 2, "a", 0)
    assert len(line["x"]) == figures.POINTS
    assert line["y"] == pytest.approx([2 * x for x in line["x"]], rel=1e-4)
    assert figures.smooth(np.full(300, 2.5)) == pytest.approx(np.full(300, 2.5))


@pytest.mark.parametrize("theme", [0, 1])
def test_every_text_stands_out_from_what_is_behind_it(theme):
    css = (HERE / "page.css").read_text()
    colours = dict(re.findall(r"(--\w+): (#[0-9a-f]{6})", css.split("prefers-color-scheme")[theme]))

    def luminance(name):
        channels = [int(colours[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a, b):
        high, low = sorted((luminance(a), luminance(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for behind in ("--page", "--panel"):
        assert min(contrast(text, behind) for text in ("--text", "--quiet", "--link")) >= 4.5
    assert min(contrast(f"--c{i}", "--page") for i in range(8)) >= 4.5


def test_damaged_predictions_cost_a_sentence(result, tmp_path):
    for name in ("metrics.jsonl", "config.yaml"):
        (tmp_path / name).write_bytes((result.folder / name).read_bytes())
    (tmp_path / "predictions.npz").write_bytes(b"PK junk")
    text = page([read_history(tmp_path)])
    assert "predictions.npz: damaged" in text
    assert [figure["id"] for figure in shown(text)][-1] == "confusion"
