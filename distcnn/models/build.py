"""Build a network by name and check its output shape."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distcnn.errors import InputError
from distcnn.models import MODELS


def build_model(
    name: str,
    num_classes: int,
    image_size: int,
    args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a network from [N, 3, image_size, image_size] images to [N, num_classes] logits, randomly initialised.

    Raises InputError for an unknown name, invalid arguments, or a network that does not map this input to that output.
    """
    try:
        model = MODELS.build(name, args or {}, num_classes=num_classes, image_size=image_size)
    except InputError as error:
        raise InputError(f"model.name = {name}: {error}") from error
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"model.name = {name}, model.args = {dict(args or {})}: {error}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"model.name = {name}: should return a torch.nn.Module, not {type(model).__name__}")
    _check_shapes(model, name, num_classes, image_size)
    return model


def check_sizes(model: nn.Module, name: str, num_classes: int, sizes: Iterable[int]) -> None:
    """Raise InputError if the network does not accept images of all `sizes` (side in pixels)."""
    for size in sizes:
        try:
            _check_shapes(model, name, num_classes, size)
        except InputError as error:
            raise InputError(
                f"data.augment, images of {size} pixels: {error}; use a network that accepts any image size, such as "
                "resnet9"
            ) from error


def forward_flops(model: nn.Module, image_size: int) -> int:
    """Count the FLOPs (2 per multiply-add) of convolutions and matrix products in the forward of one image."""
    with FlopCounterMode(display=False) as counter:
        _dry_run(model, image_size, batch=1, training=False)
    return int(counter.get_total_flops())


def _check_shapes(model: nn.Module, name: str, num_classes: int, image_size: int) -> None:
    size = f"{image_size}×{image_size}"
    try:
        out = _dry_run(model, image_size, batch=2, training=True)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"model.name = {name}: cannot take [N, 3, {size}] images: {reason}") from error
    if not isinstance(out, Tensor) or out.shape != (2, num_classes):
        got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InputError(
            f"model.name = {name}: should turn 2 images of {size} into logits of shape [2, {num_classes}], not {got}"
            + ("; try model.args = {aux_logits: false}" if hasattr(model, "aux_logits") else "")
        )


def _dry_run(model: nn.Module, image_size: int, batch: int, *, training: bool) -> Any:
    """Run a forward on a copy, for its shapes: on the meta device, without computing, if the model supports it."""
    model = copy.deepcopy(model).train(training)
    with torch.no_grad():
        try:
            return copy.deepcopy(model).to("meta")(torch.empty(batch, 3, image_size, image_size, device="meta"))
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error).lower():
                raise
        return model(torch.zeros(batch, 3, image_size, image_size))  # its forward depends on values
