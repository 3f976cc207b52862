"""distcnn predict: the order is the paths', unreadable images are named, files are whole or absent."""

import json
import os

import pytest
from PIL import Image

import distcnn
from distcnn.cli import main
from distcnn.inference.images import find_images
from tests.photos import train_model, write_photos


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train_model(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


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
        assert row["classes"] == [predictor.trained.description.classes[i] for i in best.indices]
        assert row["probabilities"] == pytest.approx(best.values.tolist(), abs=1e-6)
    err = capsys.readouterr().err
    assert "image 4.5.png: not readable as an image" in err
    assert "1 of 11 files could not be read as images" in err


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
    found = find_images(["photos/**/image [12].png", "photos/below", "photos/image 0.png"], problems)
    below = [f"photos/below/image {i}.png" for i in (1, 3, 5, 7, 9)]
    assert found == ["photos/below/image 1.png", "photos/image 2.png", *below, "photos/image 0.png"]
    assert problems == []
