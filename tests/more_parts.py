"""A package of a stranger's: one part of every kind, outside of distcnn, known to it by entry points alone."""

import re
from pathlib import Path
from textwrap import dedent

from tests.packages import install

_DEFINED = re.compile(r"^(?:def|class) (\w+)", re.MULTILINE)

# Kind (the entry point group is distcnn.<kind>) → name, and the module that is all it takes.
PARTS = {
    "models": ("more-linear", '''
        from torch import nn

        def build(num_classes: int, image_size: int, *, bias: bool = True) -> nn.Module:
            """One linear layer."""
            return nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes, bias=bias))
        '''),
    "optimizers": ("more-sign", '''
        import torch

        class Sign(torch.optim.Optimizer):
            """Step by the sign of the gradient."""

            def __init__(self, params, lr: float, *, shrink: float = 1.0):
                super().__init__(params, {"lr": lr, "shrink": shrink, "weight_decay": 0.0})

            @torch.no_grad()
            def step(self, closure=None):
                for group in self.param_groups:
                    for p in group["params"]:
                        p -= group["lr"] * group["shrink"] * p.grad.sign()
        '''),
    "schedules": ("more-halved", '''
        def halved(span, *, every: str = "1ep"):
            """Half the rate every so often."""
            return lambda step: 0.5 ** (step // span.in_steps(every))
        '''),
    "losses": ("more-margin", '''
        import torch.nn.functional as F

        def hinge(logits, targets, *, margin: float = 1.0):
            """The mean multi-class hinge loss."""
            return F.multi_margin_loss(logits, targets, margin=margin)
        '''),
    "metrics": ("more-rank", '''
        def rank(logits, targets, *, first: int = 0):
            """The mean place of the true class among the logits, the largest at `first`."""
            true = logits.gather(1, targets[:, None])
            return (logits > true).sum() + first * len(targets)
        '''),
    "sources": ("more-stripes", '''
        import numpy as np
        from distcnn.data.sources.image_set import ImageSet

        def stripes(config, split: str, *, count: int = 40) -> ImageSet:
            """Horizontal and vertical stripes."""
            images = np.zeros((count, config.image_size, config.image_size, 3), np.uint8)
            labels = np.arange(count) % 2
            images[labels == 0, ::2], images[labels == 1, :, ::2] = 255, 255
            return ImageSet(images, labels.astype(np.int64), ("rows", "columns"))
        '''),
    "augmentations": ("more-inverted", '''
        from dataclasses import dataclass
        from distcnn.data.augment.operation import ImageOperation

        @dataclass(frozen=True)
        class Inverted(ImageOperation):
            """Invert some images."""

            share: float = 0.5

            def draw(self, places):
                return {"inverted": places.uniform(0) < self.share}

            def __call__(self, images, draws):
                return images + (255 - 2 * images) * draws["inverted"][:, None, None, None].to(images.dtype)
        '''),
    "trackers": ("more-text", '''
        class Text:
            """A line for each number."""

            def __init__(self, run, *, file: str = "numbers.txt"):
                self.file = (run.folder / file).open("a")

            def log(self, values, step):
                self.file.writelines(f"{step} {name} {value}\\n" for name, value in values.items())

            def finish(self, status, summary):
                self.file.write(f"{status}\\n")
                self.file.close()
        '''),
    "launchers": ("more-launcher", '''
        from distcnn.distributed.world import World

        class More:
            """Sets MORE_RANK, MORE_SIZE and MORE_PORT, on one host."""

            rank_names = local_rank_names = ("MORE_RANK",)

            def detect(self, environment):
                return "MORE_RANK" in environment

            def world(self, environment):
                rank, size = int(environment["MORE_RANK"]), int(environment["MORE_SIZE"])
                return World(rank, size, rank, size, 0, 1, "more", ("127.0.0.1",), int(environment["MORE_PORT"]))
        '''),
    "commands": ("more-hello", '''
        def hello(parser):
            """Say hello."""
            parser.add_argument("--times", type=int, default=1, help="how often")
            return lambda options: print("hello " * options.times)
        '''),
    "export_formats": ("more-state", '''
        import torch
        from distcnn.inference.export.base import Format, deployed

        class State(Format):
            """The whole network, pickled by PyTorch."""

            file = "model.pickle"

            @staticmethod
            def write(trained, path):
                torch.save(deployed(trained)[0], path)

            @staticmethod
            def load(path):
                network = torch.load(path, weights_only=False)
                return lambda images: network(torch.from_numpy(images)).detach()
        '''),
}  # fmt: skip


def install_more_parts(folder: Path) -> None:
    """Install the package into a folder that is to be on the path."""
    texts = {kind: dedent(text).lstrip() for kind, (_, text) in PARTS.items()}
    modules = {f"more_parts/{kind}.py": text for kind, text in texts.items()}
    things = {kind: _DEFINED.search(text)[1] for kind, text in texts.items()}  # type: ignore[index]
    points = {f"distcnn.{kind}": {name: f"more_parts.{kind}:{things[kind]}"} for kind, (name, _) in PARTS.items()}
    install(folder, "more_parts", {"more_parts/__init__.py": "", **modules}, points)
