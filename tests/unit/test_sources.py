"""The sources that need no download: the same images everywhere, train and test apart, and subsets of them."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from distcnn.config.schema import Config, DataConfig
from distcnn.data import sources
from distcnn.data.sources.image_set import ImageSet
from distcnn.data.sources.load import load, problems
from distcnn.errors import InputError
from distcnn.registry import Registry
from tests.packages import install

SYNTHETIC = {
    "source": "synthetic",
    "image_size": 8,
    "args": {"train": 1100, "test": 90, "classes": 4},
}


def found(**options):
    """(keys, text) of each problem."""
    return [*problems(Config(data=DataConfig(**options)))]


def both(**options):
    return [load(DataConfig(**options), split) for split in ("train", "test")]


@pytest.mark.parametrize(
    ("options", "sizes", "side", "classes"),
    [(SYNTHETIC, (1100, 90), 8, 4), ({"source": "digits"}, (1438, 359), 32, 10)],
    ids=["synthetic", "digits"],
)
def test_shapes_and_the_same_images_again(options, sizes, side, classes):
    train, test = both(**options)
    assert (len(train), len(test)) == sizes
    for data, size, again in zip((train, test), sizes, both(**options), strict=True):
        assert (data.images.shape, data.images.dtype) == ((size, side, side, 3), np.uint8)
        assert (data.labels.shape, data.labels.dtype) == ((size,), np.int64)
        assert set(data.labels.tolist()) == set(range(classes))
        assert len(set(data.classes)) == classes
        assert np.array_equal(data.images, again.images)
        assert np.array_equal(data.labels, again.labels)
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in test.images)


def test_digits_are_all_of_scikit_learns():
    from sklearn.datasets import load_digits

    train, test = both(source="digits")
    bunch = load_digits()
    labels = np.concatenate([train.labels, test.labels])
    assert np.bincount(labels).tolist() == np.bincount(bunch.target).tolist()
    # Their own pixels, enlarged: the mean stays, and so does the brightest part of each.
    assert np.concatenate([train.images, test.images]).mean() == pytest.approx(bunch.images.mean() * 255 / 16, rel=0.01)
    assert train.images.max() == 255


def test_synthetic_can_be_learnt_and_sizes_do_not_change_the_pattern():
    train, test = both(**SYNTHETIC)
    means = np.stack([train.images[train.labels == label].mean(axis=0) for label in range(4)])
    distance = ((test.images[:, None] - means[None]) ** 2).sum(axis=(2, 3, 4))
    assert (distance.argmin(axis=1) == test.labels).mean() > 0.9


def test_synthetic_train_and_test_differ_at_equal_sizes():
    train, test = both(**SYNTHETIC | {"args": {"train": 90, "test": 90, "classes": 4}})
    assert not np.array_equal(train.labels, test.labels)
    assert (train.images != test.images).mean() > 0.5


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_subset_is_fixed_and_of_the_whole(split):
    whole = load(DataConfig(**SYNTHETIC), split)
    one, again = (load(DataConfig(**SYNTHETIC, **{f"max_{split}": 30}), split) for _ in range(2))
    assert len(one) == 30
    assert np.array_equal(one.images, again.images)
    label_of = {image.tobytes(): label for image, label in zip(whole.images, whole.labels, strict=True)}
    assert [label_of[image.tobytes()] for image in one.images] == one.labels.tolist()
    assert len({image.tobytes() for image in one.images}) == 30
    assert one.labels.tolist() != whole.labels[:30].tolist()  # not simply the first
    assert one.classes == whole.classes
    assert len(load(DataConfig(**SYNTHETIC, **{f"max_{split}": len(whole)}), split)) == len(whole)


@pytest.mark.parametrize(("split", "size"), [("train", 1100), ("test", 90)])
def test_a_subset_larger_than_the_whole_is_refused(split, size):
    with pytest.raises(InputError, match=f"max_{split} = {size + 1}.*{size} {split}"):
        load(DataConfig(**SYNTHETIC, **{f"max_{split}": size + 1}), split)


def test_a_missing_folder_is_found_before_anything_is_read(tmp_path):
    ((keys, message),) = found(source="folder", root=str(tmp_path / "none"))
    assert keys == ("data.root",)
    assert "no such folder" in message
    assert not found(source="folder", root=str(tmp_path))
    assert not found(source="synthetic", root=str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("options", "keys", "text"),
    [
        ({"args": {"md5": "0" * 32}}, "data.args.md5 data.args.url", "a checksum applies only to an archive given by data.args.url"),
        ({"args": {"md5": "xyz", "url": "file:///x"}}, "data.args.md5", "should match pattern"),
        ({"image_size": 64}, "data.image_size data.source", "the images of cifar10 are 32 pixels wide"),
        ({"source": "digits", "image_size": 8}, "data.image_size data.source", "the images of digits are 32 pixels wide"),
        ({"source": "digits", "args": {"url": "http://x"}}, "data.args.url", "unknown argument; digits takes none"),
        ({"source": "cifar100", "args": {"train": 5}}, "data.args.train", "unknown argument; cifar100 takes url, md5"),
        ({"source": "synthetic", "args": {"classes": 1}}, "data.args.classes", "greater than or equal to 2"),
        ({"source": "synthetic", "args": {"train": True}}, "data.args.train", "should be a number, not true or false"),
        ({"source": "folder", "root": ".", "args": {"test_fraction": 1.0}}, "data.args.test_fraction", "less than 1"),
        ({"source": "cifar"}, "data.source", "unknown; did you mean cifar10"),
        ({"source": "nowhere:images"}, "data.source", "No module named 'nowhere'"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_source_is_told_before_anything_is_read(options, keys, text):
    ((named, message),) = found(**options)
    assert named == tuple(keys.split())
    assert text in message


def test_what_is_near_a_problem_is_fine():
    assert found(args={"md5": "0" * 32, "url": "http://x"}) == []
    assert found(source="synthetic", image_size=64) == []


GIVEN = ImageSet(np.zeros((3, 8, 8, 3), np.uint8), np.array([0, 1, 1]), ("a", "b"))


def own(config, split, *, shade: int = 7, broken=""):
    if broken:
        return {"type": None, "floats": replace(GIVEN, images=GIVEN.images / 255), "labels": replace(GIVEN, classes=("a",)),
                "names": replace(GIVEN, labels=np.array(["a", "b", "b"]))}[broken]  # fmt: skip
    return replace(GIVEN, images=GIVEN.images + np.uint8(shade + (split == "test")))


OWN = f"{__name__}:own"


def test_a_source_of_ones_own_is_a_function():
    assert found(source=OWN, args={"shade": 3}) == []
    assert found(source=OWN, args={"shade": "deep"})[0][0] == ("data.args.shade",)
    train, test = both(source=OWN, args={"shade": 3}, image_size=8)
    assert (train.images[0, 0, 0, 0], test.images[0, 0, 0, 0]) == (3, 4)
    assert len(load(DataConfig(source=OWN, holdout=1, image_size=8), "train")) == 2


@pytest.mark.parametrize(
    ("broken", "size", "text"),
    [
        ("type", 8, "should return a distcnn.data.sources.image_set.ImageSet, not NoneType"),
        ("floats", 8, "should give images of uint8 and shape [3, 8, 8, 3], not float64 and [3, 8, 8, 3]"),
        ("", 16, "should give images of uint8 and shape [3, 16, 16, 3], not uint8 and [3, 8, 8, 3]"),
        ("names", 8, "should give one int64 label per image, not <U1 of shape [3]"),
        ("labels", 8, "gives labels 0 to 1 for 1 classes"),
    ],
)
def test_what_a_source_of_ones_own_gives_is_checked(broken, size, text):
    with pytest.raises(InputError) as caught:
        load(DataConfig(source=OWN, args={"broken": broken}, image_size=size), "train")
    assert text in str(caught.value)
    assert f"data.source = {OWN}, data.image_size = {size}: " in str(caught.value)


def test_an_installed_package_adds_a_source_by_an_entry_point(tmp_path, monkeypatch):
    modules = {"images_for_test.py": f"from {__name__} import own as images\n"}
    install(tmp_path, "images_for_test", modules, {"distcnn.sources": {"shades": "images_for_test:images"}})
    monkeypatch.syspath_prepend(tmp_path)
    fresh = Registry(sources.SOURCES.kind, sources.SOURCES.builtin, given=sources.SOURCES.given)
    monkeypatch.setattr("distcnn.data.sources.load.SOURCES", fresh)
    assert found(source="shades", args={"shade": 9}) == []
    assert both(source="shades", args={"shade": 9}, image_size=8)[0].images.max() == 9
    sys.modules.pop("images_for_test")


def test_held_out_images_are_training_images_and_take_the_test_images_place():
    whole = load(DataConfig(**SYNTHETIC), "train")
    train, held = (load(DataConfig(**SYNTHETIC, holdout=40), split) for split in ("train", "test"))
    assert (len(train), len(held)) == (len(whole) - 40, 40)
    parts = sorted(image.tobytes() for data in (train, held) for image in data.images)
    assert parts == sorted(image.tobytes() for image in whole.images)
    assert held.labels.tolist() != sorted(held.labels.tolist())  # from all over the set
    with pytest.raises(InputError, match=f"data.holdout = {len(whole)}: there are only {len(whole)} training images"):
        load(DataConfig(**SYNTHETIC, holdout=len(whole)), "train")
