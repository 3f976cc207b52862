"""Progressive resizing: lower resolutions in the first steps of a run, which cost less."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distcnn.config.plan import Plan, to_steps
from distcnn.config.schema import Config, Duration, Int, named
from distcnn.data.augment.operation import BatchOperation, Draws
from distcnn.errors import InputError
from distcnn.registry import Problem, checked_by


def _small_and_last(config: Config, args: Mapping[str, Any]) -> Iterator[Problem]:
    size, (last, _) = config.data.image_size, named(config.data.augment[-1])
    if max(args["sizes"]) >= size:
        text = f"progressive_resize: sizes: must be smaller than the image ({size} pixels)"
        yield ("data.augment", "data.image_size"), text
    if last != "progressive_resize":
        yield ("data.augment",), f"progressive_resize has to be the last: {last} draws for images of full size"


@checked_by(_small_and_last)
class ProgressiveResize(BatchOperation):
    """Make square images smaller until a step of the run: a step costs (size / image size)² as much.

    Each of `sizes` has the same part of those steps; rising ones are progressive resizing as in fast.ai's ImageNet in
    18 minutes (Howard 2018, https://www.fast.ai/posts/2018-08-10-fastai-diu-imagenet.html). Bilinear with antialiasing,
    as `F.interpolate` computes it, whose weights are taken from there once: two matrix products then take less than
    half of its time on a CPU.
    """

    def __init__(
        self,
        plan: Plan,
        image_size: int,
        sizes: Annotated[
            tuple[Annotated[Int, Field(ge=4)], ...],
            Field(min_length=1, description="pixels a side, in turn: each for its part of the steps before `until`"),
        ],
        until: Annotated[Duration, Field(description="4ep, 500step or 200000img; from then on at full size")],
    ):
        """Raise InputError where no step is left at full size."""
        self.image_size, self.sizes = image_size, sizes
        self.steps = to_steps(until, plan.batch_size, plan.steps_per_epoch)
        if self.steps >= plan.steps:
            raise InputError(
                f"data.augment: progressive_resize: until = {until}, of {plan.steps} steps in all: no step is left at "
                "full size, at which the images are evaluated"
            )
        self._weights: dict[torch.device, dict[int, tuple[Tensor, Tensor]]] = {}

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws, step: int) -> tuple[Tensor, Tensor]:
        """Images [n, S, S, 3] float32 → [n, size, size, 3] with that step's size."""
        size = self.size_at(step)
        return (images if size is None else self.resize(images, size)), labels

    def size_at(self, step: int) -> int | None:
        """Return the pixels a side; None: they are full size from then on."""
        return self.sizes[step * len(self.sizes) // self.steps] if step < self.steps else None

    def resize(self, images: Tensor, size: int) -> Tensor:
        """[n, S, S, 3] float32 → [n, size, size, 3]."""
        if images.device not in self._weights:
            self._weights[images.device] = _interpolation(self.image_size, self.sizes, images.device)
        n, height, width, channels = images.shape
        weights, columns = self._weights[images.device][size]
        rows = images.reshape(n, height, width * channels)
        return (weights @ rows).flatten(0, 1).mm(columns).view(n, size, size, channels)


def _interpolation(image_size: int, sizes: Sequence[int], device: torch.device) -> dict[int, tuple[Tensor, Tensor]]:
    """Of each size: what rows are multiplied with, [size, S], and columns with their channels, [S·3, size·3]."""
    unit, found = torch.eye(image_size)[None, None], {}
    for size in sizes:
        weights = F.interpolate(unit, (size, image_size), mode="bilinear", antialias=True)[0, 0]  # [size, S]
        columns = torch.kron(weights, torch.eye(3)).T  # each channel by itself
        found[size] = weights.to(device), columns.to(device)
    return found
