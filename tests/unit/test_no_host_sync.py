"""Between two log points the host never waits for the device: no step reads a value of a tensor."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distcnn.config.settings import saved_settings
from distcnn.distributed.watchdog import Watchdog
from distcnn.distributed.world import World
from distcnn.training.loop import train_step
from distcnn.training.run import Run

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


def training(optim, precision, **data):
    """A network with BatchNorm, all augmentation, clipping and a moving average; a function that does one step."""
    augment = [{"flip": {"alternating": True}}, {"crop": {"padding": 2}}, {"cutout": {"size": 4}},
               {"cutmix": {"alpha": 1.0}}, {"progressive_resize": {"sizes": [12], "until": "2step"}}]  # fmt: skip
    settings = {
        "data": {
            "source": "synthetic", "args": {"train": 80, "test": 8, "classes": 3}, "image_size": 16,
            "augment": augment, **data,
        },
        "model": {"name": "resnet9", "args": {"width": 4}},
        "optim": {"name": optim, "lr": 0.01, "weight_decay": 1e-3},
        "train": {"batch_size": 20, "micro_batch": 10, "precision": precision, "clip_norm": 1.0, "ema": 0.9, "threads": 1},
        "loss": {"args": {"label_smoothing": 0.1}},
    }  # fmt: skip
    run = Run(saved_settings(settings, "test").check(1), World())
    run.watch = Watchdog(World(), None, 60, print)
    run.build()
    batches = run.loader.epoch(0)
    return lambda: train_step(run, batches)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-master"])
@pytest.mark.parametrize("optim", ["sgd", "adam", "adamw", "muon"])
def test_steps_read_nothing(optim, precision, monkeypatch):
    step = training(optim, precision)
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
    step = training("sgd", "bf16", loader="streaming", workers=0)
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
