"""The sources that need no download: the same images everywhere, train and test apart, and subsets of them."""

import numpy as np
import pytest

from distcnn.config.schema import DataConfig
from distcnn.data.sources.load import load, problems
from distcnn.errors import InputError

SYNTHETIC = {
    "source": "synthetic",
    "image_size": 8,
    "synthetic_train": 1100,
    "synthetic_test": 90,
    "synthetic_classes": 4,
}


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
    train, test = both(**SYNTHETIC | {"synthetic_train": 90})
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
    ((keys, message),) = problems(DataConfig(source="folder", root=str(tmp_path / "none")))
    assert keys == ("data.root",)
    assert "no such folder" in message
    assert not list(problems(DataConfig(source="folder", root=str(tmp_path))))
    assert not list(problems(DataConfig(source="synthetic", root=str(tmp_path / "none"))))


def test_held_out_images_are_training_images_and_take_the_test_images_place():
    whole = load(DataConfig(**SYNTHETIC), "train")
    train, held = (load(DataConfig(**SYNTHETIC, holdout=40), split) for split in ("train", "test"))
    assert (len(train), len(held)) == (len(whole) - 40, 40)
    parts = sorted(image.tobytes() for data in (train, held) for image in data.images)
    assert parts == sorted(image.tobytes() for image in whole.images)
    assert held.labels.tolist() != sorted(held.labels.tolist())  # from all over the set
    with pytest.raises(InputError, match=f"data.holdout = {len(whole)}: there are only {len(whole)} training images"):
        load(DataConfig(**SYNTHETIC, holdout=len(whole)), "train")
