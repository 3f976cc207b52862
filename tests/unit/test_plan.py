"""The arithmetic of a run, and the learning rate at every step."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from distcnn.config.plan import make_plan, scaled_lr, to_steps
from distcnn.config.schema import (
    CheckpointConfig,
    Config,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)
from distcnn.data.samplers import MicroBatchSampler
from distcnn.errors import InputError
from distcnn.optim.schedules import Schedule


def plan_of(config, images=1000, world=1):
    return make_plan(config, train_images=images, test_images=10, world_size=world)


def rates(steps=100, lr=0.4, **schedule):
    """The rate of every update of a training of so many steps, 20 an epoch."""
    train = TrainConfig(batch_size=50, duration=f"{steps}step")
    config = Config(train=train, optim=OptimConfig(lr=lr), schedule=ScheduleConfig(**schedule))
    one = Schedule(config, plan_of(config))
    forward = [one.lr_at(step) for step in range(steps)]
    assert [one.lr_at(step) for step in reversed(range(steps))] == forward[::-1]  # whatever was asked before
    return forward


@pytest.mark.parametrize(
    ("duration", "steps"),
    [("10ep", 80), ("0.5ep", 4), ("0.3ep", 2), ("0.01ep", 1), ("7step", 7), ("100img", 1), ("101img", 2), ("0ep", 0)],
)
def test_durations_in_steps(duration, steps):
    assert to_steps(duration, batch_size=100, steps_per_epoch=8) == steps


@pytest.mark.parametrize(
    ("world", "micro", "per_rank", "accumulation"),
    [(1, None, 120, 1), (4, None, 30, 1), (3, 10, 10, 4), (1, 10, 10, 12)],
)
def test_the_global_batch_is_what_was_asked_for(world, micro, per_rank, accumulation):
    plan = plan_of(Config(train=TrainConfig(batch_size=120, micro_batch=micro)), world=world)
    assert (plan.micro_batch, plan.accumulation) == (per_rank, accumulation)
    assert plan.micro_batch * plan.world_size * plan.accumulation == plan.batch_size == 120


def test_steps_of_a_plan():
    train = TrainConfig(batch_size=300, duration="2.5ep")
    options = {"eval": EvalConfig(every="500img"), "checkpoint": CheckpointConfig(every="3step")}
    plan = plan_of(Config(train=train, **options))
    assert (plan.steps_per_epoch, plan.steps, plan.eval_every, plan.checkpoint_every) == (4, 10, 2, 3)
    assert plan.epochs == 2.5
    short = plan_of(Config(train=TrainConfig(batch_size=300, duration="2ep", drop_last=True)))
    assert (short.steps_per_epoch, short.steps) == (3, 6)


def test_an_epoch_without_a_full_batch():
    assert plan_of(Config(train=TrainConfig(batch_size=1001))).steps_per_epoch == 1
    with pytest.raises(InputError, match=r"train\.drop_last.*1001.*1000 training images"):
        plan_of(Config(train=TrainConfig(batch_size=1001, drop_last=True)))


@pytest.mark.parametrize(("rule", "factor"), [("none", 1), ("linear", 4), ("sqrt", 2)])
def test_the_rate_for_another_batch(rule, factor):
    config = Config(train=TrainConfig(batch_size=512), optim=OptimConfig(lr=0.1, lr_scaling=rule, base_batch=128))
    assert scaled_lr(config) == pytest.approx(0.1 * factor, rel=1e-15)
    assert plan_of(config, world=4).lr == plan_of(config).lr == scaled_lr(config)
    assert Schedule(config, plan_of(config)).lr_at(0) == scaled_lr(config)


@pytest.mark.parametrize("name", ["constant", "linear", "step", "cosine"])
def test_the_warm_up_rises_in_equal_steps_to_the_peak(name):
    milestones = {"args": {"milestones": ["60step"]}} if name == "step" else {}
    got = rates(name=name, warmup="4step", **milestones)
    assert got[:4] == pytest.approx([0.08, 0.16, 0.24, 0.32])
    assert got[4] == 0.4
    assert rates(name=name, **milestones)[0] == 0.4


def test_constant():
    assert rates(name="constant") == [0.4] * 100


def test_milestones_are_those_of_multisteplr():
    got = rates(name="step", args={"milestones": ["3ep", "20step", "4ep"], "gamma": 0.5})
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 60, 80], 0.5)
    for step, rate in enumerate(got):
        assert rate == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12), step
        optimizer.step()
        scheduler.step()


def test_linear_is_a_straight_line():
    got = rates(name="linear", args={"final": 0.2})
    steps = [after - before for before, after in pairwise(got)]
    assert steps == pytest.approx([(0.2 - 1) * got[0] / len(got)] * (len(got) - 1))


def test_cosine_is_the_closed_form():
    got = rates(name="cosine", warmup="1ep", args={"final": 0.1})
    for step in range(20, 100):
        done = (step - 20) / 80
        assert got[step] == pytest.approx(0.04 + 0.36 * (1 + math.cos(math.pi * done)) / 2, rel=1e-12)
    assert all(a > b for a, b in pairwise(got[20:]))
    assert got[-1] > 0.04  # the end itself would be the rate of one more update
    assert min(rates(name="cosine")) > 0


@pytest.mark.parametrize(
    ("rise", "initial", "final", "steps"), [(0.3, 0.04, 0.0, 100), (0.25, 0.5, 0.1, 37), (0.07, 1, 1e-3, 50)]
)
def test_onecycle_is_that_of_pytorch(rise, initial, final, steps):
    """PyTorch's rates run from the first to the last update, both included, and its peak is at pct_start × total - 1.

    Here the cycle takes `steps` whole steps: its end is the rate of one update more. So a PyTorch cycle of
    steps + 1 updates, with its peak at the same update, is the same curve.
    """
    got = rates(steps, name="onecycle", args={"rise": rise, "initial": initial, "final": final})
    optimizer = torch.optim.SGD([torch.zeros(1)], 1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=0.4,
        total_steps=steps + 1,
        pct_start=(rise * steps + 1) / (steps + 1),
        div_factor=1 / initial,
        final_div_factor=initial / max(final, 1e-12),
        cycle_momentum=False,
    )
    for step, rate in enumerate(got):
        assert rate == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6, abs=1e-9), step
        optimizer.step()
        scheduler.step()


def test_onecycle_ends_and_flanks():
    got = rates(name="onecycle", args={"rise": 0.3, "initial": 0.1, "final": 0.01})
    assert got[0] == pytest.approx(0.04)
    assert got[30] == max(got) == pytest.approx(0.4)
    assert all(a < b for a, b in pairwise(got[:31]))
    assert all(a > b for a, b in pairwise(got[30:]))
    assert 0.004 < got[-1] < 0.005


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_a_warm_up_as_long_as_the_training(name):
    assert len(rates(10, name=name, warmup="9step")) == 10
    with pytest.raises(InputError, match=r"schedule\.warmup = 10step, train\.duration = 10step"):
        rates(10, name=name, warmup="10step")


@pytest.mark.parametrize("world", [2, 3, 4, 8])
@pytest.mark.parametrize(("micro", "accumulation"), [(1, 3), (3, 1), (2, 4), (6, 2), (5, 3)])
def test_under_sync_batchnorm_all_ranks_compute_equally_often(world, micro, accumulation):
    """Over a grid of sizes: what is let through gives each rank as many forwards in every step, none of them a dummy;
    what is refused does not; and the sizes that the message offers are let through."""
    batch = micro * accumulation * world
    train = TrainConfig(batch_size=batch, micro_batch=micro, device="cuda")
    config = Config(train=train, model=ModelConfig(sync_batchnorm=True))
    seen = set()
    for images in range(2 * batch, 3 * batch):
        steps = []
        for rank in range(world):
            sampler = MicroBatchSampler(images, batch_size=batch, micro_batch=micro, rank=rank, world_size=world)
            steps.append([(micro.last, micro.weight > 0) for micro in sampler.micro_batches()])
        alike = all(own == steps[0] for own in steps) and all(real for own in steps for _, real in own)
        seen.add(alike)
        if alike:
            plan_of(config, images, world)
            continue
        with pytest.raises(InputError, match="cannot share evenly") as error:
            plan_of(config, images, world)
        dropped = replace(config, train=replace(train, drop_last=True))
        plan_of(dropped, images, world)
        _, found, sizes = str(error.value).partition("train.micro_batch to ")
        for size in sizes.split(", ") if found else ():
            plan_of(replace(config, train=replace(train, micro_batch=int(size))), images, world)
    assert seen == {True, False}


def test_without_sync_batchnorm_any_last_batch_will_do():
    plan_of(Config(train=TrainConfig(batch_size=128, micro_batch=32)), 50_000, 2)
    train = TrainConfig(batch_size=128, micro_batch=32, device="cuda")
    with pytest.raises(InputError, match="of 80 images, makes 3 micro-batches, which 2 ranks"):
        plan_of(Config(train=train, model=ModelConfig(sync_batchnorm=True)), 50_000, 2)
