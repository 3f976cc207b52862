"""distcnn predict: the order is the paths', unreadable images are named, files are whole or absent."""

import csv
import json
import os

import numpy as np
import pytest
from PIL import Image

import distcnn
from distcnn.__main__ import main
from distcnn.tools.predict import found_images
from tests.needs import require
from tests.ranks import run_ranks, run_torchrun


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return distcnn.train({
        "data": {"source": "synthetic", "synthetic_train": 100, "synthetic_test": 20, "image_size": 16},
        "train": {"duration": "2step", "batch_size": 50, "threads": 1}, "tracking": {"wandb": "disabled", "console": False, "report": False},
        "model": {"name": "resnet9", "args": {"width": 4}}, "output_dir": str(tmp_path_factory.mktemp("runs")),
    }).folder  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    """Eleven images of various sizes and kinds, one of them damaged, in two folders."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(10):
        pixels = rng.integers(0, 256, (16 + i, 20, 3), np.uint8)
        Image.fromarray(pixels).save(folder / ("below" if i % 2 else "") / f"image {i}.png")
    (folder / "image 4.5.png").write_bytes(b"\x89PNG junk")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("not looked at")
    return folder


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_image_gets_its_row_in_order_and_the_damaged_one_its_name(model, photos, tmp_path, capsys):
    out = tmp_path / "found.jsonl"
    assert main(["predict", str(model), str(photos), "--format", "jsonl", "--top", "3", "--output", str(out)]) == 1
    paths = [row["path"] for row in rows(out)]
    assert paths == sorted(paths)
    assert len(paths) == 10
    predictor = distcnn.Predictor(model)
    for row in rows(out):
        probabilities = predictor.probabilities(predictor.decode(row["path"])[None])[0]
        best = probabilities.topk(3)
        assert row["classes"] == [predictor.trained.classes[i] for i in best.indices]
        assert row["probabilities"] == pytest.approx(best.values.tolist(), abs=1e-6)
    err = capsys.readouterr().err
    assert "image 4.5.png: not readable as an image" in err
    assert "1 of 11 files could not be read as images" in err


def test_the_ranks_share_the_images_and_the_file_is_the_same(model, photos, tmp_path):
    (photos / "image 4.5.png").unlink()
    arguments = ["predict", model, photos, "--format", "csv", "--output"]
    assert main([*map(str, arguments), str(tmp_path / "1.csv")]) == 0
    outcome = run_torchrun([*arguments, tmp_path / "3.csv", "--batch-size", "3"], ranks=3)
    assert outcome.codes == [0], outcome.err
    one, three = ([*csv.reader((tmp_path / f"{ranks}.csv").read_text().splitlines())] for ranks in (1, 3))
    assert one[0][:3] == ["path", "class_1", "probability_1"]
    assert [row[0] for row in one] == [row[0] for row in three]
    assert len(one) == 11
    for a, b in zip(one[1:], three[1:], strict=True):
        assert a[1::2] == b[1::2]
        assert [float(x) for x in a[2::2]] == pytest.approx([float(x) for x in b[2::2]], abs=1e-6)


def test_a_table_shows_names_and_percents_and_nothing_that_moves_the_cursor(model, tmp_path, capsys):
    name = tmp_path / "[red]a\x1b[2J.png"
    Image.new("RGB", (16, 16)).save(name)
    assert main(["predict", str(model), str(name), "--top", "1"]) == 0
    out = capsys.readouterr().out
    assert "[red]a\N{REPLACEMENT CHARACTER}[2J.png" in out
    assert "%" in out
    assert "\x1b" not in out


def test_a_name_that_is_no_text_comes_out_as_it_is(model, tmp_path):
    name = tmp_path / os.fsdecode(b"\xff.png")
    Image.new("RGB", (16, 16)).save(name)
    out = tmp_path / "found.csv"
    assert main(["predict", str(model), str(name), "--format", "csv", "--output", str(out)]) == 0
    assert b"/\xff.png," in out.read_bytes()


def test_a_full_disk_leaves_no_file_and_one_sentence(model, photos, tmp_path):
    require("unshare", root=True)
    (tmp_path / "small").mkdir()
    out = tmp_path / "small" / "found.jsonl"
    mount = f"mount -t tmpfs -o size=4k none {out.parent} && echo x > {out.parent}/x"
    within = ["unshare", "--mount", "sh", "-c", f'{mount}; "$@"; code=$?; ls {out.parent}; exit $code', "sh"]
    outcome = run_ranks(["predict", model, photos, "--format", "jsonl", "--output", out], within=within)
    assert outcome.codes == [1]
    assert "No space left on device; nothing was written" in outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out.split() == ["x"]


def test_bad_requests_are_told_all_at_once(model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    lost = tmp_path / "lost" / "found.csv"
    arguments = ["--top", "0", "--batch-size", "-1", "--output", str(lost)]
    assert main(["predict", str(model), "nowhere.png", str(tmp_path / "empty"), *arguments]) == 2
    err = capsys.readouterr().err
    for problem in (
        "--top 0",
        "--batch-size -1",
        "nowhere.png: no such file",
        "empty: a folder without",
        f"{lost}: no such folder",
    ):
        assert problem in err
    assert not lost.parent.exists()


def test_patterns_and_folders_keep_their_own_order(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    problems: list[str] = []
    found = found_images(["photos/**/image [12].png", "photos/below", "photos/image 0.png"], problems)
    below = [f"photos/below/image {i}.png" for i in (1, 3, 5, 7, 9)]
    assert found == ["photos/below/image 1.png", "photos/image 2.png", *below, "photos/image 0.png"]
    assert problems == []
