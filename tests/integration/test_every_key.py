"""Every documented key has an effect: runs that differ in one key alone differ in the way that the key's text says.

`EFFECTS` is the table; a key that a short run cannot show stands in `ELSEWHERE`. A new key without an entry fails.
"""

import ast
import hashlib
import io
import itertools
import json
import math
import pickle
import sqlite3
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import f1_score, precision_score, recall_score

from distcnn.config.keys import KEYS, documented_keys
from distcnn.config.types import named
from distcnn.data.augment import OPERATIONS
from distcnn.data.sources import SOURCES
from distcnn.optim import OPTIMIZERS, SCHEDULES
from distcnn.runs.records import further_metrics
from distcnn.training.losses import LOSSES
from distcnn.training.metrics import METRICS
from tests.integration.effects import (
    Effect,
    Expectation,
    Ran,
    Runner,
    batches_are,
    evaluated_images_equal,
    first_difference,
    has_file,
    images_differ,
    images_equal,
    losses_close,
    losses_differ_from,
    losses_equal,
    plan_says,
    rates_are,
    refused,
    results_differ,
    results_equal,
    says,
    sizes_are,
    steps_evaluated,
    steps_saved,
    trained,
    values_are,
    weights_differ_in,
)
from tests.ranks import free_port

# What the images are, as the network sees them


def raw(ran: Ran) -> list[torch.Tensor]:
    """The training images of each step in 0…255, of a run with mean 0 and standard deviation 1."""
    return [(images.double() * 255).round() for images in ran.images()]


PLAIN = {"data.mean": [0, 0, 0], "data.std": [1, 1, 1]}  # what the network sees are pixels in 0…1
ONE_EPOCH, TWO_EPOCHS = {"train.duration": "1ep"}, {"train.duration": "2ep"}


def is_mirrored(original: torch.Tensor, seen: torch.Tensor) -> bool:
    """Whether it is the mirror image; neither that nor the image itself fails."""
    assert torch.equal(seen, original) or torch.equal(seen, original.flip(-1))
    return not torch.equal(seen, original)


def mirrored(plain: Ran, ran: Ran) -> list[list[bool]]:
    """Of each image of each step, whether it is mirrored in `ran`."""
    return [
        [is_mirrored(one, other) for one, other in zip(*step, strict=True)]
        for step in zip(raw(plain), raw(ran), strict=True)
    ]


def half_are_mirrored(runs: Sequence[Ran]) -> None:
    """With `true` some and not all of every epoch; `alternating`: an image that was, is not in the next epoch."""
    trained(runs)
    plain, flipped, alternating = runs
    for flags in (mirrored(plain, flipped), mirrored(plain, alternating)):
        assert 0.25 < np.mean(flags) < 0.75
    flags = mirrored(plain, alternating)
    names = [[image.numpy().tobytes() for image in step] for step in raw(plain)]
    epochs = [
        {name: flag for step in range(first, first + 5) for name, flag in zip(names[step], flags[step], strict=True)}
        for first in (0, 5)
    ]
    assert len(epochs[0]) == 80
    assert epochs[1] == {name: not flag for name, flag in epochs[0].items()}


def cropped_by_at_most(*paddings: int) -> object:
    """Each image is a window of itself with a black border; the largest distance of a window is the padding."""

    def check(runs: Sequence[Ran]) -> None:
        trained(runs)
        for ran, padding in zip(runs, paddings, strict=True):
            largest = 0
            for plain, seen in zip(torch.cat(raw(runs[0])), torch.cat(raw(ran)), strict=True):
                wide = F.pad(plain, (padding,) * 4)
                places = itertools.product(range(2 * padding + 1), repeat=2)
                found = [p for p in places if torch.equal(wide[:, p[0] :, p[1] :][:, :16, :16], seen)]
                assert found
                largest = max(largest, *(abs(place - padding) for place in found[0]))
            assert largest == padding

    return check


def the_order_counts_where_it_is_mirrored(runs: Sequence[Ran]) -> None:
    """Of a flip and a crop in either order: equal where an image is not mirrored, else the window is another one."""
    trained(runs)
    one, other = (torch.cat(raw(ran)) for ran in runs[1:])
    assert 0.3 < (one == other).all(dim=(1, 2, 3)).float().mean() < 0.8


def borders_differ(runs: Sequence[Ran]) -> None:
    """Where the border is not black, it is the image's mirror image; the rest is the same."""
    trained(runs)
    zeros, reflect = (torch.cat(raw(ran)) for ran in runs)
    black = (zeros == 0).all(dim=1, keepdim=True).expand_as(zeros)
    assert torch.equal(zeros[~black], reflect[~black])
    assert (zeros[black] != reflect[black]).float().mean() > 0.9


def squares_are_blank(*sides: int) -> object:
    """What is missing of each image is its part of a square of that side; of many, the whole square."""

    def check(runs: Sequence[Ran]) -> None:
        trained(runs)
        plain = torch.cat(raw(runs[0]))
        for ran, side in zip(runs, sides, strict=True):
            blank = (torch.cat(raw(ran)) != plain).any(dim=1)  # [n, H, W]
            for image in blank:
                rows, columns = (image.any(dim=d).nonzero().flatten() for d in (1, 0))
                if side:
                    assert len(rows) <= side
                    assert len(columns) <= side
                    assert image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
            assert (blank.sum(dim=(1, 2)) == side**2).float().mean() > 0.2
            assert (torch.cat(raw(ran))[blank[:, None].expand_as(plain)] == 0).all()

    return check


def own_shares(plain: Ran, ran: Ran) -> list[float]:
    """How much of each mixed image is its own: each is a blend of the image and the one before it."""
    shares = []
    for own, mixed in zip(plain.images(), ran.images(), strict=True):
        for one, other, seen in zip(own, own.roll(1, 0), mixed, strict=True):
            share = ((seen - other) * (one - other)).sum() / (one - other).square().sum()
            torch.testing.assert_close(seen, other + share * (one - other), atol=1e-5, rtol=0)
            shares.append(share.item())
    return shares


def box_shares(plain: Ran, ran: Ran) -> list[float]:
    """The same where each pixel is either the image's own, or that of the image before it."""
    shares = []
    for own, mixed in zip(raw(plain), raw(ran), strict=True):
        for one, other, seen in zip(own, own.roll(1, 0), mixed, strict=True):
            mine, theirs = ((seen == source).all(dim=0) for source in (one, other))
            assert (mine | theirs).all()
            shares.append(mine.float().mean().item())
    return shares


def mixed_by_alpha(read: object) -> object:
    """Nothing; alpha 0.05: many images as they were; alpha 4: nearly none."""

    def check(runs: Sequence[Ran]) -> None:
        trained(runs)
        plain, little, much = runs
        whole = [np.mean([share > 0.98 for share in read(plain, ran)]) for ran in (little, much)]
        assert 0.2 < whole[0] < 0.8
        assert whole[1] < 0.1

    return check


def normalised_with(**wanted: Sequence[float]) -> object:
    """The same pixels with these means, or standard deviations, run by run: equal in all three channels."""

    def check(runs: Sequence[Ran]) -> None:
        trained(runs)
        means, deviations = wanted.get("mean", [0.5, 0.5]), wanted.get("std", [0.25, 0.25])
        pixels = [
            torch.cat(ran.images(training=training)).double() * std + mean
            for training in (True, False)
            for ran, mean, std in zip(runs, means, deviations, strict=True)
        ]
        for one, other in (pixels[:2], pixels[2:]):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
        assert torch.cat(pixels).min() >= -1e-6
        assert torch.cat(pixels).max() <= 1 + 1e-6

    return check


def a_part_is_held_out(runs: Sequence[Ran]) -> None:
    """What is trained on and what is evaluated are together what was trained on without: with other means, though."""
    trained(runs)

    def ranks(images: Sequence[torch.Tensor]) -> list[bytes]:
        """Each image by the order of its pixels in each channel, which no mean changes."""
        return [image.flatten(1).argsort(dim=1, stable=True).numpy().tobytes() for image in torch.cat([*images])]

    whole, part = runs
    assert sorted([*ranks(part.images()), *ranks(part.images(training=False))]) == sorted(ranks(whole.images()))


# Numbers


def smoothed(*shares: float) -> object:
    """The first step's loss is (1 - share) · its own + share · the mean of -log p over all classes."""

    def check(runs: Sequence[Ran]) -> None:
        trained(runs)
        logits = runs[0].seen[0].logits
        uniform = -logits.double().log_softmax(dim=1).mean().item()
        for ran, share in zip(runs, shares, strict=True):
            assert ran.losses[0] == pytest.approx((1 - share) * runs[0].losses[0] + share * uniform, rel=1e-6)

    return check


def seeds_share_nothing(runs: Sequence[Ran]) -> None:
    """Weights, order, mirrored images and dropout's masks of two seeds."""
    trained(runs)
    one, other = runs
    weights = [ran.weights for ran in runs]
    assert not any(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])  # lr is next to nothing
    flags: list[dict[bytes, bool]] = []
    orders = []
    for ran in runs:
        images = torch.cat(raw(ran)).numpy()
        names = [min(image.tobytes(), image[..., ::-1].tobytes()) for image in images]  # of both sides alike
        orders.append(names)
        flags.append({name: image.tobytes() == name for name, image in zip(names, images, strict=True)})
    assert {*orders[0]} == {*orders[1]}
    assert len({*orders[0]}) == 80
    assert sum(a == b for a, b in zip(*orders, strict=True)) < 10
    assert 0.2 < np.mean([flags[0][name] == flags[1][name] for name in flags[0]]) < 0.8
    masks = [torch.cat([forward.mask for forward in ran.seen if forward.training]) for ran in runs]
    assert all(0.3 < (mask > 0).float().mean() < 0.7 for mask in masks)
    assert 0.3 < ((masks[0] > 0) == (masks[1] > 0)).float().mean() < 0.7
    assert one.losses[0] != other.losses[0]


def views_are_averaged(runs: Sequence[Ran]) -> None:
    """One, two or six calls a batch: the image; its mirror image; both of it moved."""
    one, mirror, crops = (ran.images(training=False) for ran in runs)
    assert [len(images) for images in (one, mirror, crops)] == [1, 2, 6]
    for images in (mirror, crops):
        assert torch.equal(images[0], one[0])
        assert torch.equal(images[1], one[0].flip(-1))
    assert torch.equal(crops[2][..., 1:, 1:], one[0][..., :-1, :-1])
    assert torch.equal(crops[4][..., :-1, :-1], one[0][..., 1:, 1:])


def filters_have_their_norm(runs: Sequence[Ran]) -> None:
    """With a rate of next to nothing: they stay as they were, or have norm √filters."""
    plain, fixed = (ran.weights for ran in runs)
    for name in ("conv.weight", "hidden.weight"):
        root = len(fixed[name]) ** 0.5
        assert fixed[name].norm().item() == pytest.approx(root, rel=1e-4)
        assert plain[name].norm().item() != pytest.approx(root, rel=1e-2)


def decayed(optimizer: str) -> object:
    """By one step of rate 0.05 and decay 0.2: filters and matrices are smaller by 1 % of themselves, nothing else."""

    def check(runs: Sequence[Ran]) -> None:
        trained(runs)
        plain, less = (ran.weights for ran in runs)
        start = {name: (plain[name] - less[name]) / (0.05 * 0.2) for name in plain}  # what it was before the step
        for name, weight in plain.items():
            if weight.ndim == 1:
                assert torch.equal(weight, less[name])
            else:  # as PyTorch draws them: uniform within ±1/√fan-in
                bound = 1 / weight[0].numel() ** 0.5
                assert start[name].abs().max() < 1.05 * bound, optimizer
                assert start[name].std() == pytest.approx(bound / 3**0.5, rel=0.2), optimizer

    return check


def clipped(runs: Sequence[Ran]) -> None:
    """One step of plain SGD from the same weights: both are on one line, and the clipped one went 0.05 · 0.01 far."""
    trained(runs)
    free, less, least = (torch.cat([t.flatten().double() for t in ran.weights.values()]) for ran in runs)
    # The gradient's direction is that between two of them; less clipped is twice as far as least.
    assert (less - least).norm().item() == pytest.approx(0.05 * 0.01, rel=1e-2)
    along = torch.dot(free - least, less - least) / ((free - least).norm() * (less - least).norm())
    assert along.item() == pytest.approx(1, abs=1e-3)
    assert (free - least).norm() > 0.05 * 0.1


def averaged(runs: Sequence[Ran]) -> None:
    """After one step the decay is min(decay, 2/11): weights = start · decay + stepped · (1 - decay), and not its own."""
    trained(runs)
    plain, small, large = (torch.cat([t.flatten().double() for t in ran.weights.values()]) for ran in runs)
    # start - plain is the step; of an average, the decay's share of it is missing.
    assert (small - plain).norm() > 1e-4
    assert ((small - plain) / 0.1).norm().item() == pytest.approx(((large - plain) / (2 / 11)).norm().item(), rel=1e-3)


def sums_differ_in_the_last_bits(runs: Sequence[Ran]) -> None:
    """float64's is the rounded true one; float32's is close to it, and not the same."""
    trained(runs)
    one, other = (torch.cat([t.flatten() for t in ran.weights.values()]) for ran in runs)
    assert not torch.equal(one, other)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def computed_in_half_the_bits(runs: Sequence[Ran]) -> None:
    """The types of what goes in and of the weights; losses close to those of float32. The masters are exported."""
    trained(runs)
    full, half, masters = runs
    assert [ran.images()[0].dtype for ran in runs] == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert [ran.seen[0].weights for ran in runs] == [torch.float32, torch.float32, torch.bfloat16]
    assert {tensor.dtype for ran in runs for tensor in ran.weights.values()} == {torch.float32}
    assert first_difference(full, half, close=1e-7) == 1
    losses_close(runs, 0.02)
    losses_close([half, masters], 1e-3)


def placed_where_it_can_be(runs: Sequence[Ran]) -> None:
    """`auto` is the GPU where there is one; where there is none, `cuda` is refused."""
    if torch.cuda.is_available():
        plan_says("device", "cpu", *[torch.cuda.get_device_name()] * 2)(runs)
    else:
        plan_says("device", "cpu", "cpu")(runs[:2])
        refused("no CUDA device is visible; use auto or cpu")(runs[2:])


# Files and messages


def logged_lines(here: Path) -> int:
    """Train lines on the disk so far."""
    return sum(path.read_text().count('"kind": "train"') for path in here.glob("runs/*/metrics.jsonl"))


def children(_: Path) -> int:
    """Processes of this one: a loader's workers."""
    return len([child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE])


def accelerated(_: Path) -> bool:
    """Whether an Accelerator is at work."""
    state = sys.modules.get("accelerate.state")
    return state is not None and state.AcceleratorState._shared_state != {}


def looked(ran: Ran) -> tuple[object, ...]:
    """What `look` found at each training step."""
    return tuple(forward.looked[0] for forward in ran.seen if forward.training)


def decoded_into(name: str) -> object:
    """Where the decoded images lie."""
    return lambda ran: len([*(ran.here / name).glob("*/images.npy")]) == 2  # training and test images


def trackio_says(ran: Ran) -> dict[str, object]:
    """{project: group} of what lies in trackio's databases."""
    found = {}
    for path in (ran.here / "trackio").glob("*.db"):
        with sqlite3.connect(path) as database:
            rows = database.execute("select config from configs").fetchall()
        database.close()
        (found[path.stem],) = [json.loads(config).get("_Group") for (config,) in rows]
    return found


def wandb_log(ran: Ran) -> bytes:
    """The log of the run in its folder, in which texts stand as they are."""
    return b"".join(path.read_bytes() for path in ran.folder.glob("wandb/offline-run-*/run-*.wandb"))


def wandb_log_names(*wanted: bytes | None) -> object:
    """That text stands in W&B's log, run by run, and none of the others' does."""
    return values_are(lambda ran: [text for text in wanted if text and text in wandb_log(ran)],
                      *[[text] if text else [] for text in wanted])  # fmt: skip


def resumed_at(*wanted: int | None) -> object:
    """The step that each run went on from; None for a new one."""

    def step(ran: Ran) -> int | None:
        first = ran.of("event")
        return next((record["step"] for record in first if record["event"] == "resumed"), None)

    return values_are(step, *wanted)


def same_numbers(runs: Sequence[Ran]) -> None:
    """Losses and evaluation, to the bit: the key is not about them."""
    losses_equal(runs)
    results_equal(runs)


RAW_SGD = {"optim.args": {"momentum": 0, "nesterov": False}}
ONE_STEP = {"train.duration": "1step"}
NO_RATE = {"optim.lr": 1e-12}  # the weights stay as they began
HALF, FULL = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
MATRICES = ("conv.weight", "hidden.weight", "head.weight")
VECTORS = ("conv.bias", "hidden.bias", "head.bias")
FOLDER = {"data.source": "folder", "data.args": {}, "data.root": "{photos}", "data.cache_dir": "{here}/cache", "train.duration": "1ep",
          "train.batch_size": 4}  # fmt: skip
CIFAR = {"data.source": "cifar10", "data.args": {}, "data.root": "{here}/data", "data.image_size": 32, "data.args.url": "{archive}",
         "data.args.md5": "{md5}", "train.duration": "1step"}  # fmt: skip
STREAMING = {"data.loader": "streaming", "data.workers": 0}
# One process for all of them.
TRACKED = {"tracking.wandb": "offline", "tracking.backends": ["wandb", "trackio"], "tracking.project": "birds",
           "tracking.group": "flock", **ONE_STEP}  # fmt: skip
HOME = {"TRACKIO_DIR": "{here}/trackio", "HOME": "{here}"}
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "{port}"}


def augmented(operation: str, argument: str, *values: object, **others: object) -> list[list[object]]:
    """Values of data.augment that differ in one argument of one operation; 0 leaves the operation out."""
    return [[{operation: {argument: value, **others}}] if value else [] for value in values]


def further(ran: Ran) -> dict[str, float]:
    return further_metrics(ran.of("eval")[-1])


def metrics_are(*names: list[str]) -> Expectation:
    return values_are(lambda ran: [*further(ran)], *names)


def of_confusion(score: Callable[..., float], runs: Sequence[Ran]) -> None:
    """The macro and the weighted average, as scikit-learn has them."""
    confusion = np.array(runs[0].of("eval")[-1]["confusion"])
    true = np.repeat(np.arange(len(confusion)), confusion.sum(axis=1))
    predicted = np.concatenate([np.repeat(np.arange(len(confusion)), row) for row in confusion])
    expected = [score(true, predicted, average=average, zero_division=0) for average in ("macro", "weighted")]
    assert [*further(runs[0]).values(), *further(runs[1]).values()] == pytest.approx(expected)


def smaller(coarse: float, fine: float) -> None:
    """With one bin, errors above and below the confidence cancel out."""
    assert 0 < coarse < fine


def cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


EFFECTS: dict[str, Effect | tuple[Effect, ...]] = {
    "name": Effect(["one", "two"], [values_are(lambda ran: ran.folder.name, "one", "two"), same_numbers]),
    "seed": Effect([0, 1], [seeds_share_nothing, results_differ],
                   {**NO_RATE, **PLAIN, **ONE_EPOCH, "data.augment": ["flip"], "model.args": {"dropout": 0.5}}),
    "output_dir": Effect(["{here}/a", "{here}/b/c"], [
        values_are(lambda ran: str(ran.folder.relative_to(ran.here)), "a/run", "b/c/run"), same_numbers]),
    "engine": Effect(["ddp", "auto", "accelerate"], [
        values_are(lambda ran: {*looked(ran)}, {False}, {False}, {True}), same_numbers], look=accelerated),
    "data.source": Effect(["synthetic", "digits", "folder"], [
        losses_differ_from(1), plan_says("train_images", 2048, 1438, 12),
        values_are(lambda ran: [*ran.of("eval")[-1]["per_class"]][:2], ["class0", "class1"], ["0", "1"], ["cat", "dog"])],
        {**FOLDER, "data.image_size": 32, "train.duration": "1step"}),
    "data.root": Effect(["{photos}", "{others}"], [plan_says("train_images", 12, 9), losses_differ_from(1)], FOLDER),
    # The same cache is there for the second run, but the network sees what it decoded for the first.
    "data.cache_dir": Effect(["{here}/one", "{here}/two"], [
        values_are(decoded_into("one"), True, False), values_are(decoded_into("two"), False, True), same_numbers], FOLDER),
    "data.args.url": Effect(["{archive}", "{archive}.none"], [refused(None, ".none could not be downloaded")], CIFAR),
    "data.args.md5": Effect(["{md5}", "0" * 32, None], [
        refused(None, f"does not have the checksum {'0' * 32}", "does not have the checksum c58f30108f718f92721af3b95e74349a")],
        CIFAR),
    "data.image_size": (
        Effect([16, 24], [sizes_are([16] * 4, [24] * 4), losses_differ_from(1)]),
        Effect([16, 24], [sizes_are([16] * 3, [24] * 3), losses_differ_from(1)], FOLDER),
    ),
    "data.args.test_fraction": Effect([0.1, 0.5], [plan_says("test_images", 3, 6), plan_says("train_images", 9, 6)],
                                 {**FOLDER, "data.root": "{classes}"}),
    "data.max_train": Effect([None, 40], [plan_says("train_images", 80, 40), plan_says("test_images", 40, 40),
                                          losses_differ_from(1)]),
    "data.max_test": Effect([None, 20], [
        plan_says("test_images", 40, 20), values_are(lambda ran: ran.of("eval")[-1]["total"], 40, 20), losses_equal,
        results_differ]),
    "data.holdout": Effect([0, 30], [
        plan_says("train_images", 80, 50), values_are(lambda ran: ran.of("eval")[-1]["split"], "test", "holdout"),
        values_are(lambda ran: ran.of("eval")[-1]["total"], 40, 30), a_part_is_held_out], ONE_EPOCH),
    "data.args.train": Effect([80, 60], [plan_says("train_images", 80, 60), plan_says("test_images", 40, 40)]),
    "data.args.test": Effect([40, 20], [plan_says("train_images", 80, 80), plan_says("test_images", 40, 20),
                                             losses_equal]),
    "data.args.classes": Effect([10, 7], [
        values_are(lambda ran: len(ran.of("eval")[-1]["per_class"]), 10, 7), losses_differ_from(1)]),
    "data.loader": Effect(["resident", "streaming"], [
        values_are(lambda ran: {*looked(ran)}, {0}, {1}), images_equal, same_numbers],
        {"data.augment": ["flip", {"crop": {"padding": 2}}], "data.workers": 1}, look=children),
    "data.workers": Effect([0, 1], [values_are(lambda ran: {*looked(ran)}, {0}, {1}), images_equal, same_numbers],
                           {**STREAMING, "data.augment": ["flip"]}, look=children),
    "data.augment": Effect([[], ["flip", {"crop": {"padding": 3}}], [{"crop": {"padding": 3}}, "flip"]], [
        the_order_counts_where_it_is_mirrored, losses_differ_from(1), evaluated_images_equal], {**PLAIN, **ONE_EPOCH}),
    "data.augment.flip.alternating": Effect([[], ["flip"], [{"flip": {"alternating": True}}]], [
        half_are_mirrored, losses_differ_from(1), evaluated_images_equal], {**PLAIN, **TWO_EPOCHS}),
    "data.augment.crop.padding": Effect(augmented("crop", "padding", 0, 1, 3), [
        cropped_by_at_most(0, 1, 3), losses_differ_from(1), evaluated_images_equal], {**PLAIN, **ONE_EPOCH}),
    "data.augment.crop.mode": Effect(augmented("crop", "mode", "zeros", "reflect", padding=3), [
        borders_differ, losses_differ_from(1), evaluated_images_equal], {**PLAIN, **ONE_EPOCH}),
    "data.augment.cutout.size": Effect(augmented("cutout", "size", 0, 3, 6), [
        squares_are_blank(0, 3, 6), losses_differ_from(1), evaluated_images_equal], {**PLAIN, **ONE_EPOCH}),
    "data.augment.randaugment.num": Effect(augmented("randaugment", "num", 0, 1, 2, magnitude=10), [
        images_differ, losses_differ_from(1), evaluated_images_equal], STREAMING),
    "data.augment.randaugment.magnitude": Effect(augmented("randaugment", "magnitude", 10, 30, num=2), [
        images_differ, losses_differ_from(1), evaluated_images_equal], STREAMING),
    "data.augment.mixup.alpha": Effect(augmented("mixup", "alpha", 0, 0.05, 4), [
        mixed_by_alpha(own_shares), losses_differ_from(1), evaluated_images_equal], {**PLAIN, **ONE_EPOCH}),
    "data.augment.cutmix.alpha": Effect(augmented("cutmix", "alpha", 0, 0.05, 4), [
        mixed_by_alpha(box_shares), losses_differ_from(1), evaluated_images_equal], {**PLAIN, **ONE_EPOCH}),
    "data.augment.progressive_resize.sizes": Effect(
        augmented("progressive_resize", "sizes", [8], [12], [8, 12], until="2step"), [
            sizes_are([8, 8, 16, 16], [12, 12, 16, 16], [8, 12, 16, 16]), evaluated_images_equal]),
    "data.augment.progressive_resize.until": Effect(
        augmented("progressive_resize", "until", "1step", "2step", "48img", sizes=[8]), [
            sizes_are([8, 16, 16, 16], [8, 8, 16, 16], [8, 8, 8, 16]), evaluated_images_equal]),
    "data.mean": Effect([HALF, FULL], [normalised_with(mean=[0.5, 0.25]), losses_differ_from(1)], {"data.std": FULL}),
    "data.std": Effect([HALF, FULL], [normalised_with(std=[0.5, 0.25]), losses_differ_from(1)], {"data.mean": HALF}),
    "model.name": Effect(["tests.integration.observing:Net", "simple_cnn", "resnet9", "mobilenet_v3_small"], [
        values_are(lambda ran: min(ran.weights),
                   "conv.bias", "conv1.bias", "head.weight", "classifier.0.bias"), losses_differ_from(1)],
        {"train.duration": "1step"}),
    "model.args": Effect([{"width": 8}, {"width": 4}], [plan_says("parameters", 2458, 1322), losses_differ_from(1)]),
    "model.channels_last": Effect([True, False], [
        values_are(lambda ran: {forward.channels_last for forward in ran.seen}, {True}, {False}), images_equal,
        losses_close]),
    "model.compile": Effect([False, True], [losses_differ_from(1)], {
        "model.name": "tests.integration.observing:TwoHeads", "train.duration": "1step"}, process=True,
        environment={"TORCHINDUCTOR_COMPILE_THREADS": "1"}),
    "loss.name": Effect(["cross_entropy", "torch.nn:MultiMarginLoss"], [losses_differ_from(1), results_differ]),
    "loss.args.label_smoothing": Effect([0, 0.2, 0.5], [
        losses_differ_from(1), smoothed(0, 0.2, 0.5), results_differ]),
    "optim.name": Effect(["sgd", "adam", "adamw", "muon"], [losses_differ_from(2)], {"optim.weight_decay": 0.5}),
    "optim.lr": Effect([0.05, 0.1], [rates_are([0.05] * 4, [0.1] * 4)]),
    "optim.lr_scaling": Effect(["none", "linear", "sqrt"], [rates_are([0.05] * 4, [0.1] * 4, [0.05 * 2**0.5] * 4)],
                               {"optim.base_batch": 8}),
    "optim.base_batch": Effect([8, 32], [rates_are([0.1] * 4, [0.025] * 4)], {"optim.lr_scaling": "linear"}),
    "optim.head_lr": (
        Effect([None, 0.2], [weights_differ_in("head.weight")], {**RAW_SGD, **ONE_STEP}),
        Effect([None, 0.2], [
            losses_differ_from(2), values_are(lambda ran: ran.rates, [0.05] * 4, [0.05] * 4),
            values_are(lambda ran: [*ran.held], [[0.05]] * 4, [[0.05, 0.2]] * 4)]),
    ),
    "optim.bias_lr": (
        Effect([None, 0.2], [weights_differ_in(*VECTORS, "norm.weight", "norm.bias")],
               {**RAW_SGD, **ONE_STEP, "model.args": {"norm": True}}),
        Effect([None, 0.2], [
            losses_differ_from(2), values_are(lambda ran: ran.rates, [0.05] * 4, [0.05] * 4),
            values_are(lambda ran: [*ran.held], [[0.05]] * 4, [[0.05, 0.2]] * 4)]),
    ),
    # The first step from rest is the same without Nesterov's look ahead.
    "optim.args.momentum": (
        Effect([0.9, 0.5, 0], [losses_differ_from(3)], {"optim.args": {"nesterov": False}}),
        Effect([0.9, 0.5], [losses_differ_from(2)], {"optim.name": "muon"}),
    ),
    "optim.args.nesterov": Effect([True, False], [losses_differ_from(2)]),
    # The bias correction makes the first step the same, but for its last bits.
    "optim.args.betas": (
        Effect([[0.9, 0.999], [0.5, 0.999]], [losses_differ_from(3, close=1e-5)],
               {"optim.name": "adam", "optim.lr": 0.01}),
        Effect([[0.9, 0.999], [0.9, 0.5]], [losses_differ_from(3, close=1e-5)],
               {"optim.name": "adamw", "optim.lr": 0.01}),
    ),
    "optim.args.eps": (
        Effect([1e-8, 1e-2], [losses_differ_from(2)], {"optim.name": "adam"}),
        Effect([1e-8, 1e-2], [losses_differ_from(2)], {"optim.name": "adamw"}),
    ),
    "optim.weight_decay": (
        Effect([0, 0.2], [losses_differ_from(2)]),
        Effect([0, 0.2], [weights_differ_in(*MATRICES), decayed("sgd")], {**RAW_SGD, **ONE_STEP}),
        Effect([0, 0.2], [weights_differ_in(*MATRICES), decayed("adamw")], {"optim.name": "adamw", **ONE_STEP}),
        Effect([0, 0.2], [weights_differ_in(*MATRICES), decayed("muon")], {"optim.name": "muon", **ONE_STEP}),
        Effect([0, 0.2], [weights_differ_in(*MATRICES)], {"optim.name": "adam", **ONE_STEP}),
    ),
    "optim.args.fixed_norm": Effect([False, True], [weights_differ_in("conv.weight", "hidden.weight"), filters_have_their_norm],
                               {**NO_RATE, **ONE_STEP, "optim.name": "muon"}),
    "schedule.name": (
        Effect(["constant", "linear", "cosine", "onecycle"], [rates_are(
            [0.05] * 4, [0.05, 0.0375, 0.025, 0.0125], [cosine(0.05, 0, step / 4) for step in range(4)],
            [0.05 * 0.04, cosine(0.05 * 0.04, 0.05, 1 / 1.2), cosine(0.05, 0, 0.8 / 2.8), cosine(0.05, 0, 1.8 / 2.8)])]),
        Effect(["step", "constant"], [refused(None, "unknown argument; constant takes none")],
               {"schedule.args": {"milestones": ["2step"]}}),
    ),
    "schedule.warmup": Effect(["0step", "2step", "32img", "0.6ep"], [rates_are(
        [0.05] * 4, [0.05 / 3, 0.1 / 3, 0.05, 0.05], [0.05 / 3, 0.1 / 3, 0.05, 0.05], [0.0125, 0.025, 0.0375, 0.05])]),
    "schedule.args.milestones": Effect([["2step"], ["3step"], ["1step", "2step"]], [rates_are(
        [0.05, 0.05, 0.005, 0.005], [0.05, 0.05, 0.05, 0.005], [0.05, 0.005, 0.0005, 0.0005])], {"schedule.name": "step"}),
    "schedule.args.gamma": Effect([0.1, 0.5], [rates_are([0.05, 0.05, 0.005, 0.005], [0.05, 0.05, 0.025, 0.025])],
                             {"schedule.name": "step", "schedule.args": {"milestones": ["2step"]}}),
    "schedule.args.final": (
        Effect([0.0, 0.5], [rates_are([0.05, 0.0375, 0.025, 0.0125], [0.05, 0.04375, 0.0375, 0.03125])],
               {"schedule.name": "linear"}),
        Effect([0.0, 0.5], [rates_are(*[[cosine(0.05, end, step / 4) for step in range(4)] for end in (0, 0.025)])],
               {"schedule.name": "cosine"}),
        Effect([0.0, 0.5], [rates_are(*[[0.002, 0.05, cosine(0.05, end, 1 / 3), cosine(0.05, end, 2 / 3)]
                                        for end in (0, 0.025)])], {"schedule.name": "onecycle", "schedule.args": {"rise": 0.25}}),
    ),
    "schedule.args.rise": Effect([0.25, 0.5], [rates_are(
        [0.002, 0.05, cosine(0.05, 0, 1 / 3), cosine(0.05, 0, 2 / 3)], [0.002, 0.026, 0.05, 0.025])],
        {"schedule.name": "onecycle"}),
    "schedule.args.initial": Effect([0.04, 0.5], [rates_are([0.002, 0.026, 0.05, 0.025], [0.025, 0.0375, 0.05, 0.025])],
                               {"schedule.name": "onecycle", "schedule.args": {"rise": 0.5}}),
    "train.duration": Effect(["3step", "1ep", "0.4ep", "100img"], [
        values_are(lambda ran: len(ran.losses), 3, 5, 2, 7), plan_says("steps", 3, 5, 2, 7), losses_equal]),
    "train.batch_size": Effect([16, 40], [batches_are([16] * 4, [40] * 4), plan_says("steps_per_epoch", 5, 2),
                                          losses_differ_from(1)]),
    "train.micro_batch": Effect([None, 8, 4], [
        batches_are([16] * 4, [8] * 8, [4] * 16), plan_says("accumulation", 1, 2, 4), losses_close]),
    "train.drop_last": Effect([False, True], [
        batches_are([32, 32, 16, 32], [32, 32, 32, 32]), plan_says("steps_per_epoch", 3, 2), losses_differ_from(3)],
        {"train.batch_size": 32}),
    "train.precision": (
        Effect(["fp32", "bf16", "bf16-master"], [computed_in_half_the_bits]),
        Effect(["fp32", "fp16"], [refused(None, "fp16 needs CUDA")]),
    ),
    "train.gradient_sum": Effect(["fp64", "fp32"], [sums_differ_in_the_last_bits], {"train.micro_batch": 1, **ONE_STEP}),
    "train.ema": (
        Effect([None, 0.5, 0.9], [losses_equal, results_differ], {"train.duration": "20step"}),
        Effect([None, 0.1, 0.9], [averaged], {**ONE_STEP, "optim.lr": 0.5}),
    ),
    "train.lookahead": (
        Effect([None, 2], [losses_differ_from(3)]),
        Effect([2, 3], [losses_differ_from(3)]),
        Effect([None, 4], [losses_equal, results_differ]),  # after the last step the weights are the slow ones
    ),
    "train.lookahead_rate": Effect([0.5, 0.9], [losses_differ_from(3), results_differ], {"train.lookahead": 2}),
    "train.clip_norm": (
        Effect([None, 0.02, 0.01], [clipped], {**RAW_SGD, **ONE_STEP}),
        Effect([None, 0.01], [losses_differ_from(2)]),
        Effect([None, 1e6], [same_numbers]),  # no gradient is as large
    ),
    "train.device": Effect(["cpu", "auto", "cuda"], [placed_where_it_can_be]),
    "train.backend": Effect(["auto", "gloo", "nccl"], [
        refused(None, None, "NCCL needs CUDA"), lambda runs: same_numbers(runs[:2])]),
    "train.threads": Effect([1, 2], [
        plan_says("threads", 1, 2), values_are(lambda ran: {forward.threads for forward in ran.seen}, {1}, {2})]),
    "train.timeout": Effect([1, 2], [says("within 1 s (train.timeout)", "within 2 s (train.timeout)", code=1)],
                            environment=ALONE),
    "eval.every": Effect(["1step", "2step", "1ep", "48img"], [
        steps_evaluated([1, 2, 3, 4], [2, 4], [4], [3, 4]), same_numbers]),
    "eval.batch_size": Effect([500, 7], [batches_are([40], [7, 7, 7, 7, 7, 5], training=False), losses_equal, lambda runs:
        values_are(lambda ran: ran.of("eval")[-1]["confusion"], *[runs[0].of("eval")[-1]["confusion"]] * 2)(runs)]),
    "eval.metrics": Effect([[], ["f1"], ["f1", {"top_k": {"k": 1}}]], [
        metrics_are([], ["f1"], ["f1", "top_k_1"]), losses_equal]),
    "eval.metrics.precision.average": Effect([["precision"], [{"precision": {"average": "weighted"}}]], [
        metrics_are(["precision"], ["precision_weighted"]), losses_equal, lambda runs:
        of_confusion(precision_score, runs)]),
    "eval.metrics.recall.average": Effect([["recall"], [{"recall": {"average": "weighted"}}]], [
        metrics_are(["recall"], ["recall_weighted"]), losses_equal, lambda runs: of_confusion(recall_score, runs)]),
    "eval.metrics.calibration_error.bins": Effect(
        [[{"calibration_error": {"bins": 1}}], [{"calibration_error": {"bins": 15}}]], [
            metrics_are(["calibration_error_1"], ["calibration_error_15"]), losses_equal, lambda runs:
            smaller(*further(runs[0]).values(), *further(runs[1]).values())]),
    "eval.metrics.f1.average": Effect([["f1"], [{"f1": {"average": "weighted"}}]], [
        metrics_are(["f1"], ["f1_weighted"]), losses_equal, lambda runs:
        of_confusion(f1_score, runs)]),
    "eval.metrics.top_k.k": Effect([[{"top_k": {"k": 1}}], [{"top_k": {"k": 5}}]], [
        metrics_are(["top_k_1"], ["top_k_5"]), losses_equal, values_are(lambda ran: [*further(ran).values()] == [
            ran.of("eval")[-1]["accuracy" if "top_k_1" in further(ran) else "top5_accuracy"]], True, True)]),
    "eval.views": Effect(["one", "mirror", "crops"], [views_are_averaged, losses_equal, results_differ]),
    "checkpoint.every": Effect(["1step", "2step", "1ep"], [steps_saved([1, 2, 3, 4], [2, 4], [4]), same_numbers]),
    "checkpoint.minutes": Effect([None, 1e-9, 1e6], [steps_saved([4], [1, 2, 3, 4], [4]), same_numbers]),
    "checkpoint.keep": Effect([1, 3], [steps_saved([4], [2, 3, 4]), same_numbers], {"checkpoint.every": "1step"}),
    "checkpoint.resume": Effect(["never", "auto", "{here}/runs/run/checkpoints/step-00000002.pt"], [
        resumed_at(None, 3, 2), values_are(lambda ran: ran.folder.name, "run-2", "run", "run-2"),
        values_are(lambda ran: len(ran.losses), 4, 4, 2), results_equal],
        {"checkpoint.every": "1step"}, before={"train.duration": "3step"}),
    "checkpoint.allow_changes": Effect([[], ["optim.weight_decay"], ["optim"], ["model"]], [
        refused("optim.weight_decay was 0.1, is 0.5", None, None, "optim.weight_decay was 0.1, is 0.5"),
        lambda runs: resumed_at(3, 3)(runs[1:3])],
        {"checkpoint.resume": "auto", "optim.weight_decay": 0.5}, before={"train.duration": "3step", "optim.weight_decay": 0.1}),
    "tracking.log_every": Effect([1, 2, 3], [
        values_are(looked, (0, 1, 2, 3, 4, 5), (0, 0, 2, 2, 4, 4), (0, 0, 0, 3, 3, 3)), same_numbers],
        {"train.duration": "6step"}, look=logged_lines),
    "tracking.console": Effect([True, False], [says("epoch 1/1  step 5  loss", None, stream="out"), same_numbers], ONE_EPOCH),
    "tracking.report": Effect([True, False], [has_file("report.html", True, False), same_numbers]),
    "tracking.wandb": (
        Effect(["offline", "auto", "disabled"], [has_file("wandb", True, True, False), same_numbers], TRACKED, process=True,
               environment=HOME),
        Effect(["disabled", "online"], [refused(None, "no API key found; set WANDB_API_KEY")], environment=HOME),
    ),
    "tracking.project": Effect(["birds", "boats"], [
        values_are(trackio_says, {"birds": "flock"}, {"boats": "flock"}), wandb_log_names(b"birds", b"boats"), same_numbers],
        TRACKED, process=True, environment=HOME),
    "tracking.timeout": Effect([1, 2], [
        says("warning: wandb did not finish within 1 s", "warning: wandb did not finish within 2 s")],
        {**ONE_STEP, "tracking.wandb": "offline"}, process=True, environment={"PYTHONPATH": "{stuck}"}),
    "tracking.group": Effect(["flock", None], [
        values_are(trackio_says, {"birds": "flock"}, {"birds": None}), wandb_log_names(b"flock", None), same_numbers],
        TRACKED, process=True, environment=HOME),
    "tracking.backends": Effect([["trackio", "wandb"], ["tensorboard"], []], [
        values_are(lambda ran: [*trackio_says(ran)], ["birds"], [], []), has_file("wandb", True, False, False),
        has_file("tensorboard", False, True, False), same_numbers],
        {**TRACKED, "tracking.wandb": "auto"}, process=True, environment=HOME),
}  # fmt: skip


@dataclass(frozen=True)
class Elsewhere:
    """Why a short run on the CPU cannot show a key's effect, and the test (file::function) that covers what it can."""

    reason: str
    test: str


_ON_CUDA = "Only on CUDA, and no test runs on a GPU. "
ELSEWHERE = {
    "model.sync_batchnorm": Elsewhere(
        _ON_CUDA + "Not covered: what it does there. Covered: without CUDA it is refused.",
        "test_config.py::test_a_conflict_names_all_keys_involved",
    ),
    "train.tf32": Elsewhere(
        _ON_CUDA + "Not covered: what it does there. Covered: without CUDA it is refused.",
        "test_config.py::test_a_conflict_names_all_keys_involved",
    ),
    "train.deterministic": Elsewhere(
        "It shows where an operation has a deterministic and another form, which distcnn's networks have on CUDA alone. "
        "Covered: that strict refuses an operation that has none, and what cuDNN and the compiler are asked for.",
        "test_device.py::test_strict_refuses_what_has_no_deterministic_form_and_lasts_no_longer",
    ),
}

# Choices of a key that its runs above do not take, and why.
LEFT_OUT = {}


def test_every_key_stands_in_one_of_the_tables():
    keys = [key for key in KEYS if key not in ARGUMENTS_OF] + arguments()
    assert sorted([*EFFECTS, *ELSEWHERE]) == sorted(keys)  # none is missing, unknown or in both


# Mappings of arguments: what each built-in part takes stands in the table, argument by argument.
ARGUMENTS_OF = {"data.args": SOURCES, "loss.args": LOSSES, "optim.args": OPTIMIZERS, "schedule.args": SCHEDULES}
# Lists of parts: every argument of every part is in the table too.
LISTS_OF = {"data.augment": OPERATIONS, "eval.metrics": METRICS}


def arguments() -> list[str]:
    """Every argument of every built-in part, such as optim.args.momentum, once."""
    found = [
        f"{key}.{one.name}"
        for key, parts in ARGUMENTS_OF.items()
        for name in parts.builtin
        for one in parts.arguments(name)
    ]
    found += [
        f"{key}.{name}.{one.name}"
        for key, parts in LISTS_OF.items()
        for name in parts.builtin
        for one in parts.arguments(name)
    ]
    return [*dict.fromkeys(found)]


def setting_of(key: str) -> str:
    """What a key of the table sets: of an item's argument, as data.augment.crop.padding, the list."""
    return next((name for name in LISTS_OF if key.startswith(f"{name}.")), key)


@pytest.mark.parametrize("key", [key for key in EFFECTS if setting_of(key) != key])
def test_what_differs_is_the_argument_alone(key):
    """The runs' lists are alike but for it; or the operation is left out."""
    operation, argument = key.removeprefix(f"{setting_of(key)}.").split(".")
    for effect in effects_of(key):
        rest, different = [], []
        for items in effect.values:
            parts = [named(item) for item in items]
            if operation in [name for name, _ in parts]:
                rest.append(
                    [
                        (name, {k: v for k, v in args.items() if name != operation or k != argument})
                        for name, args in parts
                    ]
                )
                different.append([args.get(argument) for name, args in parts if name == operation])
        assert all(one == rest[0] for one in rest)
        assert all(a != b for a, b in itertools.combinations(different, 2))
        assert len(different) > 1


def effects_of(key: str) -> tuple[Effect, ...]:
    effects = EFFECTS[key]
    return effects if isinstance(effects, tuple) else (effects,)


def test_every_choice_of_a_key_is_taken():
    for key, kind, *_ in documented_keys():
        if "|" in kind and key in EFFECTS:
            taken = {str(value).lower() for effect in effects_of(key) for value in effect.values}
            assert {*kind.split("|")} - taken == {*LEFT_OUT.get(key, {})}, key


@pytest.mark.parametrize("key", ELSEWHERE)
def test_a_key_without_an_effect_here_names_a_test_that_there_is(key):
    file, _, function = ELSEWHERE[key].test.partition("::")
    assert ELSEWHERE[key].reason
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in Path(__file__).parents[1].rglob(file)]
    assert function in [node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("key", EFFECTS)
def test_a_key_has_the_effect_that_its_text_says(runner, key):
    for effect in effects_of(key):
        runs = runner.runs(setting_of(key), effect)
        for expectation in effect.expected:
            expectation(runs)


@pytest.fixture(scope="module")
def runner(tmp_path_factory) -> Runner:
    """With what the table names in braces: folders of photos, an archive like CIFAR-10's, a library that is stuck."""
    folder = tmp_path_factory.mktemp("keys")
    rng = np.random.default_rng(0)

    def photos(root: Path, splits: dict[str, int]) -> str:
        """So many photos of each of three classes."""
        for split, count in splits.items():
            for animal in ("cat", "dog", "eel"):
                (root / split / animal).mkdir(parents=True)
                for i in range(count):
                    Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(
                        root / split / animal / f"{i}.png"
                    )
        return str(root)

    stuck = folder / "stuck" / "wandb"
    stuck.mkdir(parents=True)
    (stuck / "__init__.py").write_text("import time\ntime.sleep(1e6)\n")
    archive = folder / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
        contents = {name: {"data": rng.integers(0, 256, (20, 3072), np.uint8), "labels": [i % 10 for i in range(20)]}
                    for name in names}  # fmt: skip
        for name, content in {**contents, "batches.meta": {"label_names": [f"c{i}" for i in range(10)]}}.items():
            data = pickle.dumps(content)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    places = {
        "photos": photos(folder / "photos", {"train": 4, "test": 2}),
        "others": photos(folder / "others", {"train": 3, "test": 2}),
        "classes": photos(folder / "classes", {"": 4}),
        "archive": archive.as_uri(), "md5": hashlib.md5(archive.read_bytes()).hexdigest(),
        "stuck": str(stuck.parent), "port": str(free_port()),
    }  # fmt: skip
    return Runner(folder, places)
