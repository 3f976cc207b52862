"""A folder of images: any mode and size, decoded once, split the same way every time, and every mistake named."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distcnn.config.schema import DataConfig
from distcnn.data.sources import folder
from distcnn.data.sources.folder import decode, stratified_split
from distcnn.errors import InputError

RED, GREEN = (200, 40, 80), (10, 180, 30)


def picture(path, colour=RED, size=(12, 10), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


@pytest.fixture
def tree(tmp_path):
    """Two classes of five images each, in files of different sizes; every image of a grey of its own."""
    for label, name in enumerate(("cat", "dog")):
        for i in range(5):
            picture(tmp_path / "images" / name / f"{i}.png", (100 * label + 10 * i,) * 3, (8 + i, 8 + 2 * i))
    return tmp_path / "images"


def config(tree, **options):
    return DataConfig(source="folder", root=str(tree), cache_dir=str(tree.parent / "cache"), image_size=8, **options)


def folder_of(config, split, **arguments):
    return folder.folder(config, split, **arguments)


def refused(tree, split="train"):
    with pytest.raises(InputError) as caught:
        folder_of(config(tree), split)
    return caught.value.problems


def left_in_cache(tree):
    cache = tree.parent / "cache"
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock") if cache.exists() else []


def test_images_labels_and_class_names(tree):
    (tree / ".hidden").mkdir()
    (tree / "cat" / ".DS_Store").write_text("the system's")
    (tree / "README.txt").write_text("not an image")
    (tree / "cat" / "deeper").mkdir()
    (tree / "cat" / "4.png").rename(tree / "cat" / "deeper" / "4.png")
    train, test = (folder_of(config(tree), split, test_fraction=0.2) for split in ("train", "test"))
    assert train.classes == test.classes == ("cat", "dog")
    assert (train.images.shape, train.images.dtype, train.labels.dtype) == ((8, 8, 8, 3), np.uint8, np.int64)
    assert np.bincount(train.labels).tolist() == [4, 4]
    assert np.bincount(test.labels).tolist() == [1, 1]
    greys = [int(image.max()) for one in (train, test) for image in one.images]
    assert sorted(greys) == sorted(100 * label + 10 * i for label in range(2) for i in range(5))
    for one in (train, test):
        assert [int(image.min()) // 100 for image in one.images] == one.labels.tolist()


def test_split_folders(tree):
    for name in ("train", "val"):
        for label in ("a", "b"):
            picture(tree / "split" / name / label / "0.jpg")
    train, test = (folder_of(config(tree / "split"), split) for split in ("train", "test"))
    assert train.labels.tolist() == test.labels.tolist() == [0, 1]
    (tree / "split" / "test").mkdir()
    assert "exactly one of" in refused(tree / "split", "test")[0]


def test_the_second_load_does_not_decode(tree, monkeypatch):
    first = folder_of(config(tree), "train").images.copy()
    monkeypatch.setattr(folder, "decode", lambda *_: pytest.fail("decoded again"))
    again = folder_of(config(tree), "train")
    assert np.array_equal(first, again.images)
    assert len(left_in_cache(tree)) == 1
    again.images[:] = 255  # private pages: nobody else sees it
    assert np.array_equal(folder_of(config(tree), "train").images, first)


def test_a_changed_file_is_decoded_again_even_with_its_old_size_and_date(tree):
    def greys():
        return {int(image.max()) for split in ("train", "test") for image in folder_of(config(tree), split).images}

    file = picture(tree / "cat" / "0.bmp", (77,) * 3)
    before = file.stat()
    assert 77 in greys()
    picture(file, (99,) * 3)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    assert 77 not in greys()
    assert 99 in greys()


def test_a_partial_cache_of_a_killed_process_is_replaced(tree):
    whole = folder_of(config(tree), "train").images.copy()
    (name,) = left_in_cache(tree)
    cache = tree.parent / "cache" / name
    cache.rename(cache.with_suffix(".partial"))
    (cache.with_suffix(".partial") / "images.npy").write_bytes(b"torn")
    assert np.array_equal(folder_of(config(tree), "train").images, whole)
    assert left_in_cache(tree) == [name]


def test_every_unreadable_file_is_named_and_no_cache_is_left(tree):
    root = tree.parent / "root"
    root.mkdir()
    cat, dog = root / "train" / "cat", root / "train" / "dog"
    tree.rename(root / "train")
    bad = [cat / "notes.txt", dog / "empty.jpg", dog / "link.png", dog / "torn.png"]
    bad[0].write_text("not an image")
    bad[1].touch()
    bad[2].symlink_to(root / "gone.png")
    bad[3].write_bytes((dog / "4.png").read_bytes()[:60])
    assert [problem.split(": ")[0] for problem in refused(root)] == [str(path) for path in bad]
    assert left_in_cache(root) == []
    for path in bad:
        path.unlink()
    assert len(folder_of(config(root), "train").images) == 10


def test_names_that_are_not_utf_8(tree):
    strange = os.fsdecode(os.fsencode(tree / "cat") + b"/\xff\xe9.png")
    try:
        Path(strange).write_bytes((tree / "cat" / "0.png").read_bytes())
    except OSError:
        pytest.skip("the file system takes no such name")
    assert sum(len(folder_of(config(tree), split).images) for split in ("train", "test")) == 11


@pytest.mark.parametrize(
    ("mode", "colour", "expected", "name"),
    [
        ("L", 77, (77, 77, 77), "x.png"),
        ("1", 1, (255, 255, 255), "x.png"),
        ("LA", (77, 255), (77, 77, 77), "x.png"),
        ("RGBA", (*RED, 255), RED, "x.png"),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0), "x.tif"),
        ("I;16", 200 * 256 + 99, (200, 200, 200), "x.png"),
        ("I;16", 256, (1, 1, 1), "x.tif"),
        ("RGB", RED, RED, "x.bmp"),
    ],
)
def test_modes(tmp_path, mode, colour, expected, name):
    Image.new(mode, (20, 12), colour).save(tmp_path / name)
    pixels = decode(tmp_path / name, 8)
    assert (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8)
    assert (pixels == expected).all()


def test_palettes(tmp_path):
    palette = Image.new("P", (9, 9), 1)
    palette.putpalette([*GREEN, *RED])
    palette.save(tmp_path / "p.png")
    palette.save(tmp_path / "transparent.gif", transparency=0)
    for name in ("p.png", "transparent.gif"):
        assert (decode(tmp_path / name, 8) == RED).all()


def test_the_centre_is_cut_out_at_the_shorter_side(tmp_path):
    wide = Image.new("RGB", (30, 10), RED)
    wide.paste(GREEN, (10, 0, 20, 10))
    wide.save(tmp_path / "wide.png")
    wide.rotate(90, expand=True).save(tmp_path / "tall.png")
    for name in ("wide.png", "tall.png"):
        assert (decode(tmp_path / name, 10) == GREEN).all()
    assert decode(picture(tmp_path / "thin.png", RED, (100, 1)), 8).tolist() == [[list(RED)] * 8] * 8


def test_exif_orientation_is_followed(tmp_path):
    upright = Image.new("RGB", (8, 8), RED)
    upright.paste(GREEN, (0, 0, 8, 4))  # green above
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90° clockwise to see it upright"
    upright.rotate(90).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "turned.png", 8), np.asarray(upright))


def test_a_split_is_stratified_disjoint_and_stable():
    labels = np.repeat([2, 0, 1, 3], [40, 20, 2, 1])
    split = stratified_split(labels, 0.1)
    assert sorted([*split["train"], *split["test"]]) == list(range(63))
    assert np.bincount(labels[split["test"]], minlength=4).tolist() == [2, 1, 4, 0]  # one of 2, none of 1
    for name, rows in stratified_split(labels.copy(), 0.1).items():
        assert np.array_equal(rows, split[name])
    assert np.bincount(labels[stratified_split(labels, 0.99)["train"]]).tolist() == [1, 1, 1, 1]


def test_mistakes_in_the_tree_are_told(tree, tmp_path):
    def make(*names):
        for name in names:
            (tree.parent / name).mkdir(parents=True)
        return tree.parent / names[0].split("/")[0]

    assert str(tree / "none") in refused(tree / "none")[0]
    assert "no class folders" in refused(make("bare"))[0]
    assert "no train/" in refused(make("half/test/a"))[0]
    picture(tree.parent / "lone/train/a/0.png")
    assert "test, val" in refused(tree.parent / "lone", "test")[0]
    empty = make("empty/a", "empty/b", "empty/c")
    picture(empty / "b" / "0.png")
    assert [problem.split(": ")[1] for problem in refused(empty)] == [str(empty / "a"), str(empty / "c")]
    picture(tree / "loose.JPG")
    assert "loose.JPG" in refused(tree)[0]
    assert left_in_cache(tree) == []


def test_a_tree_too_small_for_a_test_split_is_told(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / "images" / name / "0.png")
    assert len(folder_of(config(tmp_path / "images"), "train").images) == 2
    assert "test" in refused(tmp_path / "images", "test")[0]


def test_a_cache_that_cannot_be_written_is_told(tree):
    (tree.parent / "cache").write_text("in the way")
    assert str(tree.parent / "cache") in refused(tree)[0]
