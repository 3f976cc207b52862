"""Build a network by name, and see that it maps the images to the logits that are wanted of it."""

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
    """A network from [N, 3, image_size, image_size] to [N, num_classes] logits, with PyTorch's default weights.

    Raises InputError for an unknown name, for arguments that it does not take, and where the network does not map that
    input to that output.
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
    """Raise InputError where a network does not take images of one of these sizes, in pixels a side, as well."""
    for size in sizes:
        try:
            _check_shapes(model, name, num_classes, size)
        except InputError as error:
            raise InputError(
                f"data.augment, images of {size} pixels: {error}; it takes a network for images of any size, such as "
                "resnet9"
            ) from error


def forward_flops(model: nn.Module, image_size: int) -> int:
    """Floating-point operations (2 a multiply-add) of the convolutions and products of one image's forward."""
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
    """A forward for its shapes, on a copy: on the meta device, where nothing is computed, if the model allows."""
    model = copy.deepcopy(model).train(training)
    with torch.no_grad():
        try:
            return copy.deepcopy(model).to("meta")(torch.empty(batch, 3, image_size, image_size, device="meta"))
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error).lower():
                raise
        return model(torch.zeros(batch, 3, image_size, image_size))  # its forward looks at values
