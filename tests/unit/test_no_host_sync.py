"""Between two log points the host never waits for the device: no step reads a value of a tensor."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distcnn.config.schema import OptimConfig
from distcnn.data.augment.crop import Crop
from distcnn.data.augment.cutmix import Cutmix
from distcnn.data.augment.cutout import Cutout
from distcnn.data.augment.flip import Flip
from distcnn.data.augment.pipeline import Pipeline
from distcnn.data.augment.progressive_resize import ProgressiveResize
from distcnn.data.loaders.resident import ResidentLoader
from distcnn.data.loaders.streaming import StreamingLoader
from distcnn.data.normalize import Normalize
from distcnn.data.preprocess import Preprocess
from distcnn.data.samplers import MicroBatchSampler
from distcnn.data.sources.image_set import ImageSet
from distcnn.distributed.watchdog import Watchdog
from distcnn.distributed.world import World
from distcnn.engine.ddp import DDPEngine
from distcnn.models.build import build_model
from distcnn.optim.optimizers import make_optimizer
from distcnn.training.batchnorm import RunningStatistics
from distcnn.training.loop import train_step

CPU = torch.device("cpu")
# Operations whose result, or its shape, the host needs; lift_fresh makes a tensor from numbers of the host.
READING = {
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "equal",
    "masked_select",
    "_unique2",
    "unique_dim",
    "lift_fresh",
}
METHODS = ("tolist", "numpy", "cpu")  # these never show on a CPU


class Reads(TorchDispatchMode):
    """Every reading operation that runs inside, backward and optimizer included."""

    def __init__(self):
        super().__init__()
        self.found, self.operations = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        name = func.overloadpacket.__name__
        masks = name.startswith("index") and any(
            isinstance(t, torch.Tensor) and t.dtype in (torch.bool, torch.uint8)
            for part in args[1:]
            if isinstance(part, list | tuple)
            for t in part
        )
        if name in READING or masks:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def training(optim, precision, make_loader):
    """A network with BatchNorm, all augmentation, clipping; (a function that does one step, for so many steps)."""
    rng = np.random.default_rng(0)
    data = ImageSet(rng.integers(0, 256, (80, 16, 16, 3), np.uint8), rng.integers(0, 3, 80), ("a", "b", "c"))
    sampler = MicroBatchSampler(80, batch_size=20, micro_batch=10)
    plan = SimpleNamespace(batch_size=20, steps_per_epoch=4, steps=4)
    pipeline = Pipeline([Flip(True), Crop(2), Cutout(4), Cutmix(3, 1.0), ProgressiveResize(plan, 16, (12,), "2step")])
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    preprocess = Preprocess(Normalize((0.5,) * 3, (0.25,) * 3), CPU, dtype=dtype)
    model = build_model("resnet9", 3, 16, {"width": 4})
    optimizer = make_optimizer(model, OptimConfig(name=optim, weight_decay=1e-3), 0.01)
    engine = DDPEngine(model, optimizer, CPU, precision, clip_norm=1.0, micro_batches=2)
    running, watch = RunningStatistics(engine.computed, 2), Watchdog(World(), None, 60, print)
    batches = make_loader(data, sampler, preprocess, pipeline).epoch(0)
    return lambda: train_step(engine, batches, running, 0.01, 0.1, watch)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-master"])
@pytest.mark.parametrize("optim", ["sgd", "adam", "adamw", "muon"])
def test_steps_read_nothing(optim, precision, monkeypatch):
    step = training(optim, precision, lambda *parts: ResidentLoader(*parts, seed=0))
    step()  # the order and the draws of the epoch are made on the host, and the optimizer's state
    with Reads() as reads:
        for name in METHODS:
            monkeypatch.setattr(torch.Tensor, name, lambda *_, name=name: reads.found.append(name))
        losses = [step() for _ in range(3)]
        monkeypatch.undo()
    assert reads.found == []
    assert reads.operations > 1000
    assert all(0 < loss.item() < 10 for loss in losses)


def test_streamed_steps_read_nothing():
    """The host makes the images here, so what it does with tensors of its own does not count."""
    step = training("sgd", "bf16", lambda *parts: StreamingLoader(*parts, seed=0, workers=0))
    step()
    with Reads() as reads:
        step()
    assert "_local_scalar_dense" not in reads.found


@pytest.mark.parametrize(
    "read",
    [
        lambda t: t.item(),
        lambda t: bool(t[0] > 0),
        lambda t: t[t > 0],
        lambda t: torch.tensor(1.0),
        lambda t: t.nonzero(),
    ],
)
def test_a_read_is_found(read):
    with Reads() as reads:
        read(torch.ones(1))
    assert reads.found
