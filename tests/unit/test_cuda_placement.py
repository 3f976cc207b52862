"""The GPU path without a GPU: on pretended CUDA tensors a mix-up of devices or a read of a value on the host raises.

Not seen here: the kernels of fused optimizers and DDP's buckets, which need a driver, the streaming loader's streams, and
whatever depends on a value.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from distcnn.config.settings import Settings
from distcnn.data.augment.crop import Crop
from distcnn.data.augment.cutmix import Cutmix
from distcnn.data.augment.cutout import Cutout
from distcnn.data.augment.flip import Flip
from distcnn.data.augment.mixup import Mixup
from distcnn.data.augment.operation import Places
from distcnn.data.augment.pipeline import Pipeline
from distcnn.data.augment.progressive_resize import ProgressiveResize
from distcnn.data.loaders.batch import Finish
from distcnn.data.normalize import Normalize
from distcnn.data.preprocess import Preprocess
from distcnn.data.samplers import MicroBatchSampler
from distcnn.distributed.world import World
from distcnn.models.build import build_model
from distcnn.optim.optimizers import make_optimizer
from distcnn.training.run import Run
from tests.golden import curves
from tests.golden.operations import CONFIGS, PHASES, RECIPES, kept, release, steps
from tests.pretended_cuda import CUDA, backward, on_cuda, pretended_cuda


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("name", ["simple_cnn", "compact_cnn", "resnet9", "resnet18"])
def test_a_batch_is_made_and_classified_on_the_device(mode, name):
    pipeline = Pipeline([Flip(), Crop(4, mode), Cutout(8)])
    model = build_model(name, 10, 32)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        preprocess = Preprocess(Normalize((0.5,) * 3, (0.5,) * 3), CUDA, dtype=torch.bfloat16)
        images = torch.empty(100, 32, 32, 3, dtype=torch.uint8, device=CUDA)
        indices = torch.zeros(20, dtype=torch.int64, device=CUDA)
        early, late = (
            torch.zeros(3, 20, dtype=torch.int64, device=CUDA),
            torch.zeros(2, 20, dtype=torch.int64, device=CUDA),
        )
        chosen = pipeline.on_bytes(images.index_select(0, indices), early)
        floats, _ = pipeline.on_floats(preprocess.normalized(chosen), indices, late, 0)
        batch = preprocess.layout(floats)
        assert (batch.device, batch.shape, batch.dtype) == (CUDA, (20, 3, 32, 32), torch.bfloat16)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        on_device = {key: fake.from_tensor(t).to(CUDA) for key, t in model.state_dict().items()}
        with torch.no_grad():
            logits = torch.func.functional_call(model.eval(), on_device, (batch.float(),))
        assert (logits.device, logits.shape) == (CUDA, (20, 10))


@pytest.mark.parametrize("mix", [Mixup(10, 1.0), Cutmix(10, 1.0)], ids=["mixup", "cutmix"])
def test_a_batch_is_mixed_and_resized_on_the_device(mix):
    plan = SimpleNamespace(batch_size=20, steps_per_epoch=3, steps=3)
    pipeline = Pipeline([Flip(True), Crop(4), mix, ProgressiveResize(plan, 32, (24,), "2step")])
    positions = np.arange(60)
    places = Places(0, 0, positions, positions, 32, 32)
    real = pipeline.on_bytes.draw(places), pipeline.on_floats.draw(places)
    sampler = MicroBatchSampler(60, batch_size=20, micro_batch=20)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        preprocess = Preprocess(Normalize((0.5,) * 3, (0.5,) * 3), CUDA, dtype=torch.bfloat16)
        finish = Finish(preprocess, pipeline, 0)
        early, late = (fake.from_tensor(one).to(CUDA) for one in real)
        sizes = []
        for micro in sampler.micro_batches():
            images = torch.empty(20, 32, 32, 3, dtype=torch.uint8, device=CUDA)
            labels = torch.zeros(20, dtype=torch.int64, device=CUDA)
            images = pipeline.on_bytes(images, early[:, micro.start : micro.stop])
            batch = finish(images, labels, late[:, micro.start : micro.stop], micro)
            assert (batch.images.device, batch.images.dtype) == (CUDA, torch.bfloat16)
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert (batch.labels.device, batch.labels.shape) == (CUDA, (20, 10))
            sizes.append(batch.images.shape[2])
        assert sizes == [24, 24, 32]


def second_step(path, **settings):
    """Of a config on pretended CUDA: the second step, and what crossed between host and device meanwhile."""
    threads, world = torch.get_num_threads(), World()
    quiet = {"output_dir": ".", "train.device": "auto", "train.threads": 1}
    config = Settings().read_yaml(path).update(quiet | settings).check(1)
    run = Run(replace(config, train=replace(config.train, device="cpu", precision="fp32")), world)
    torch.set_num_threads(threads)
    with pretended_cuda() as device:
        run.config, run.device, run.model = config, CUDA, on_cuda(run.model)
        run.optimizer = make_optimizer(run.model, config.optim, run.plan.lr)
        made = steps(run)
        next(made)  # an epoch begins with copies to the device
        device.crossings.clear()
        step = next(made)
    assert step.loss.device == CUDA
    return step, device.crossings


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_of_each_recipe_stays_on_the_device(recipe):
    """In its own sizes; and it launches what was counted on the CPU."""
    raw = Settings().read_yaml(CONFIGS / f"{recipe}.yaml").check(1)
    images = {"data.source": "synthetic", "data.args.train": 2 * raw.train.batch_size, "data.args.test": 10}
    step, crossings = second_step(CONFIGS / f"{recipe}.yaml", **images)
    assert crossings == []
    micro = raw.train.micro_batch or raw.train.batch_size
    assert [shape[0] for shape in step.shapes] == [micro] * (raw.train.batch_size // micro)
    known, rows = kept()
    for phase, before in zip(PHASES, map(int, rows[recipe, 1][2:]), strict=False):
        names, tolerance = step.operations.names[phase], 0.01 if known == release() else 0.1
        # A node that is called by hand keeps what it was given, and some make a copy for that.
        fewest = step.operations.counts[phase] - names["clone"]
        assert fewest * (1 - tolerance) <= before <= step.operations.counts[phase] * (1 + tolerance), dict(names)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in curves.NAMES if name != "streaming"])
def test_a_step_with_each_option_stays_on_the_device(name):
    assert second_step(curves.FOLDER / f"{name}.yaml")[1] == []


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_step_in_fp16_stays_on_the_device(clip):
    """The loss scale grows, and steps are skipped, without a word from the host."""
    assert second_step(curves.FOLDER / "tutorial.yaml", **{"train.precision": "fp16", "train.clip_norm": clip})[1] == []


def test_a_mix_up_is_found():
    with pretended_cuda() as device:
        logits, labels = torch.empty(4, 10, device=CUDA), torch.zeros(4, dtype=torch.int64)
        with pytest.raises(RuntimeError, match=r"two (different )?devices,? cuda:0"):
            nn.functional.cross_entropy(logits, labels)
        weight = nn.Parameter(torch.empty(3, device=CUDA))
        with pytest.raises(Exception, match="_local_scalar_dense"):
            weight.sum().item()
        weight.grad = torch.empty(3, device=CUDA)
        torch.zeros(3).to(CUDA)
        assert device.crossings == ["aten._to_copy.default"]


def test_the_backward_in_python_is_autograd_s():
    """On tensors with values: ways that meet, a weight that is used twice, a broadcast bias, several outputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))

    def loss():
        twice = model(torch.ones(2, 3, 8, 8)) * model[4].bias
        large, small = twice.chunk(2)
        return (large + twice.sum() * small).square().mean()

    found = []
    for carry_back in (torch.autograd.backward, backward):
        for _ in range(2):  # the second time is added
            carry_back(loss())
        found.append([p.grad for p in model.parameters()])
        model.zero_grad(set_to_none=True)
    torch.testing.assert_close(*found)
