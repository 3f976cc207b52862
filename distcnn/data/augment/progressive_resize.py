"""Progressive resizing: train on smaller images, at lower cost, in the first steps of a run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distcnn.config.plan import Plan, to_steps
from distcnn.config.schema import Config
from distcnn.config.types import Duration, Int, named
from distcnn.data.augment.operation import BatchOperation, Draws
from distcnn.errors import InputError
from distcnn.registry import Problem, checked_by


def _check(config: Config, args: Mapping[str, Any]) -> Iterator[Problem]:
    size, (last, _) = config.data.image_size, named(config.data.augment[-1])
    if max(args["sizes"]) >= size:
        text = f"progressive_resize: sizes: must be smaller than the image ({size} pixels)"
        yield ("data.augment", "data.image_size"), text
    if last != "progressive_resize":
        yield ("data.augment",), f"progressive_resize must come last: {last} is drawn for images of full size"


@checked_by(_check)
class ProgressiveResize(BatchOperation):
    """Downsample square images during the first steps of a run, which then cost (size / image size)² as much.

    The steps are divided equally among `sizes`; use increasing ones, as in fast.ai's ImageNet in 18 minutes (Howard
    2018, https://www.fast.ai/posts/2018-08-10-fastai-diu-imagenet.html). The interpolation is bilinear with
    antialiasing, by two matrix products with weights taken once from `F.interpolate`: less than half of its time on a
    CPU.
    """

    def __init__(
        self,
        plan: Plan,
        image_size: int,
        sizes: Annotated[
            tuple[Annotated[Int, Field(ge=4)], ...],
            Field(min_length=1, description="sides in pixels, each for an equal part of the steps before `until`"),
        ],
        until: Annotated[Duration, Field(description="4ep, 500step or 200000img; full size from then on")],
    ):
        """Raise InputError if no step is left at full size."""
        self.image_size, self.sizes = image_size, sizes
        self.steps = to_steps(until, plan.batch_size, plan.steps_per_epoch)
        if self.steps >= plan.steps:
            raise InputError(
                f"data.augment: progressive_resize: until = {until} leaves none of the {plan.steps} steps at full "
                "size, at which the images are evaluated"
            )
        self._weights: dict[torch.device, dict[int, tuple[Tensor, Tensor]]] = {}

    def __call__(self, images: Tensor, labels: Tensor, draws: Draws, step: int) -> tuple[Tensor, Tensor]:
        """Resize images [n, S, S, 3] float32 to [n, size, size, 3], the size at `step`."""
        size = self.size_at(step)
        return (images if size is None else self.resize(images, size)), labels

    def size_at(self, step: int) -> int | None:
        """Return the image side in pixels at `step`; None for full size."""
        return self.sizes[step * len(self.sizes) // self.steps] if step < self.steps else None

    def resize(self, images: Tensor, size: int) -> Tensor:
        """Resize images [n, S, S, 3] float32 to [n, size, size, 3]."""
        if images.device not in self._weights:
            self._weights[images.device] = _interpolation(self.image_size, self.sizes, images.device)
        n, height, width, channels = images.shape
        weights, columns = self._weights[images.device][size]
        rows = images.reshape(n, height, width * channels)
        return (weights @ rows).flatten(0, 1).mm(columns).view(n, size, size, channels)


def _interpolation(image_size: int, sizes: Sequence[int], device: torch.device) -> dict[int, tuple[Tensor, Tensor]]:
    """Map each size to its matrices: [size, S] for the rows, [S·3, size·3] for the columns with their channels."""
    unit, found = torch.eye(image_size)[None, None], {}
    for size in sizes:
        weights = F.interpolate(unit, (size, image_size), mode="bilinear", antialias=True)[0, 0]  # [size, S]
        columns = torch.kron(weights, torch.eye(3)).T  # each channel separately
        found[size] = weights.to(device), columns.to(device)
    return found
