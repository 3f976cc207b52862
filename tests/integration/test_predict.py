"""distcnn predict on several ranks, and on a disk without room."""

import csv

import pytest

from distcnn.cli import main
from tests.needs import require
from tests.photos import train_model, write_photos
from tests.ranks import run_ranks, run_torchrun


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return train_model(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


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
