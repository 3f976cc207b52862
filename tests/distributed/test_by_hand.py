"""Real ranks against the same steps by hand: clipping, dropout, mixing, the slowest rank and a scheduler's grace."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from distcnn.config.tree import unflatten
from tests import by_hand
from tests.ranks import run_ranks
from tests.records import metrics

ROOT = str(Path(__file__).parents[2])
SLEEPY = '''
import os
import time

from torch import nn


class Sleepy(nn.Module):
    """A linear layer whose forward takes its time on one rank."""

    def __init__(self, num_classes, image_size, rank, seconds):
        super().__init__()
        self.layer = nn.Linear(3 * image_size**2, num_classes)
        self.seconds = seconds if os.environ.get("RANK", "0") == str(rank) else 0

    def forward(self, x):
        if self.training and x.device.type != "meta":  # where shapes are tried out
            time.sleep(self.seconds)
        return self.layer(x.flatten(1))
'''


def start(folder: Path, name: str, ranks: int, settings: dict, **environment: str):
    """`distcnn train` on by_hand.SETTINGS and `settings`, which are dotted."""
    base = {f"{section}.{key}": value for section, keys in by_hand.SETTINGS.items() for key, value in keys.items()}
    options = base | {"name": name, "output_dir": folder / "runs"} | settings
    config = folder / f"{name}.yaml"
    config.write_text(json.dumps(unflatten(copy.deepcopy(options)), default=str))  # which is YAML
    path = f"{folder}:{ROOT}"
    outcome = run_ranks(["train", config], ranks, cwd=folder, PYTHONPATH=path, **environment)
    assert outcome.codes == [0] * ranks, outcome.err
    return folder / "runs" / name, outcome


def recorded(folder: Path, name: str, ranks: int, settings: dict, **arguments):
    """Such a run of a network that writes down its steps: their losses, and each rank's part of each step."""
    seen = folder / f"seen-{name}"
    seen.mkdir()
    model = {"model.name": "tests.by_hand:recorded", "model.args": arguments}
    run, _ = start(folder, name, ranks, settings | model, BY_HAND=str(seen))
    return by_hand.losses(run), by_hand.read_steps(seen, ranks)


@pytest.mark.parametrize(("ranks", "limit"), [(2, 0.1), (3, 0.1), (3, 100.0)])
def test_clipping_sees_the_gradient_of_all_ranks(tmp_path, ranks, limit):
    """Batches of 12 and 10 in micro-batches of 2 and 1: the ranks have different numbers of images."""
    settings = {"train.clip_norm": limit, "train.micro_batch": 2}
    losses, steps = recorded(tmp_path, "clipped", ranks, settings)
    _, labels = by_hand.raw()
    for step, loss in zip(steps, losses, strict=True):
        images = torch.cat([i for part in step for i in part.images])
        targets = labels[by_hand.rows_of(images)]
        network = by_hand.gradient(step[0].before, images, targets)
        assert loss == pytest.approx(by_hand.cross_entropy(step[0].before, images, by_hand.one_hot(targets)), rel=1e-5)
        norm = float(nn.utils.clip_grad_norm_(network.parameters(), limit))
        assert (norm > limit) == (limit == 0.1)
        for part in step:
            for name, p in network.named_parameters():
                moved = (part.before[name].double() - part.after[name].double()) / by_hand.SETTINGS["optim"]["lr"]
                assert torch.allclose(moved, p.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_dropout_is_the_same_at_1_2_and_3_ranks(tmp_path):
    """The mask of a micro-batch is that of its place, not of its rank; without dropout the losses are others."""
    settings = {"data.args.train": 72, "train.batch_size": 24, "train.duration": "2ep"}
    runs = {ranks: recorded(tmp_path, f"r{ranks}", ranks, settings, drop=0.4) for ranks in (1, 2, 3)}
    losses = {ranks: found for ranks, (found, _) in runs.items()}
    assert len(losses[1]) == 6
    # Each micro-batch gives the same bits; what each rank has added up is rounded in another order.
    assert losses[2] == pytest.approx(losses[1], rel=1e-6)
    assert losses[3] == pytest.approx(losses[1], rel=1e-6)
    for number in range(6):
        # Micro-batch j was computed by rank j mod ranks.
        in_order = {
            ranks: [steps[number][j % ranks].masks[j // ranks] for j in range(6)] for ranks, (_, steps) in runs.items()
        }
        for ranks in (2, 3):
            assert all(torch.equal(a, b) for a, b in zip(in_order[1], in_order[ranks], strict=True))
    masks = [mask.numpy() for step in runs[3][1] for part in step for mask in part.masks]
    assert len({mask.tobytes() for mask in masks}) == len(masks) == 36
    assert np.mean([mask == 0 for mask in masks]) == pytest.approx(0.4, abs=0.1)
    plain, _ = recorded(tmp_path, "plain", 2, settings, drop=0.0)
    assert all(abs(a - b) > 1e-5 for a, b in zip(plain, losses[2], strict=True))


@pytest.mark.parametrize(("ranks", "slow"), [(2, 0), (3, 2)])
def test_a_rank_that_sleeps_is_the_slowest(tmp_path, ranks, slow):
    """It sleeps for 3.2 s in the four steps between two log points; the others wait for it, and are not slow by that."""
    (tmp_path / "sleepy.py").write_text(SLEEPY)
    run, _ = start(tmp_path, "sleepy", ranks, {
        "model.name": "sleepy:Sleepy", "model.args": {"rank": slow, "seconds": 0.8},
        "data.args.train": 240, "train.micro_batch": 2, "train.batch_size": 2 * ranks,
        "train.duration": "8step", "tracking.log_every": 4,
    })  # fmt: skip
    lines = metrics(run, "train")[4:]  # the first steps begin with what is slow but once
    assert [line["slowest_rank"] for line in lines] == [slow] * 4
    # Four steps of a linear layer take some milliseconds: to take more than 2 s, they would have to be held up.
    assert all(line["rank_spread"] > 0.5 for line in lines)


@pytest.mark.parametrize(("grace", "warned"), [(None, False), ("1", True), ("600", False)])
def test_a_grace_shorter_than_a_step_is_a_warning(tmp_path, grace, warned):
    """A step sleeps for 1.2 s; the scheduler ends the job one second after its signal."""
    (tmp_path / "sleepy.py").write_text(SLEEPY)
    settings = {"model.name": "sleepy:Sleepy", "model.args": {"rank": 0, "seconds": 1.2}, "train.duration": "1step"}
    settings |= {"train.micro_batch": 12, "tracking.console": True}
    environment = {"DISTCNN_GRACE": grace} if grace else {}
    run, outcome = start(tmp_path, "grace", 1, settings, **environment)
    said = [line["message"] for line in metrics(run, "event") if line["event"] == "short_grace"]
    assert len(said) == warned
    assert ("short grace: a step and its save can take" in outcome.out + outcome.err) == warned
    if warned:
        needed = float(said[0].split(" can take ")[1].split()[0])
        assert needed >= 1.2
        assert "the scheduler ends the job 1 s after its signal" in said[0]
