"""Networks by name: distcnn's own, torchvision's classifiers, or a user's `package.module:callable`."""

import copy
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from distcnn.config.rules import Problem
from distcnn.errors import InputError
from distcnn.models.compact import CompactCNN
from distcnn.models.resnet import ResNet9, resnet18
from distcnn.models.simple import SimpleCNN
from distcnn.models.whitened import WhitenedCNN

MODELS: dict[str, Callable[..., nn.Module]] = {
    "simple_cnn": SimpleCNN,
    "compact_cnn": CompactCNN,
    "resnet9": ResNet9,
    "resnet18": resnet18,
    "whitened_cnn": WhitenedCNN,
}


def build_model(
    name: str,
    num_classes: int,
    image_size: int,
    args: Mapping[str, Any] | None = None,
    small_sizes: Iterable[int] = (),
) -> nn.Module:
    """A network from [N, 3, image_size, image_size] to [N, num_classes] logits, with PyTorch's default weights.

    A callable is given `num_classes`, and `image_size` where it takes it, besides `args`. Raises InputError for an
    unknown name, for arguments that it does not take, and where the network does not map that input to that
    output; also at each of `small_sizes`, if it is to be trained on images of those sizes too.
    """
    make = _find(name)
    known: dict[str, Any] = {"num_classes": num_classes}
    if "image_size" in inspect.signature(make).parameters or name.startswith("vit_"):
        known["image_size"] = image_size
    try:
        model = make(**known, **(args or {}))
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"model.name = {name}, model.args = {dict(args or {})}: {error}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"model.name = {name}: should return a torch.nn.Module, not {type(model).__name__}")
    _check_shapes(model, name, num_classes, image_size)
    for size in small_sizes:
        try:
            _check_shapes(model, name, num_classes, size)
        except InputError as error:
            raise InputError(
                f"data.small_sizes, {size}: {error}; it takes a network for images of any size, such as resnet9"
            ) from error
    return model


def problems(name: str) -> Iterator[Problem]:
    """What is wrong with a model's name."""
    try:
        _find(name)
    except InputError as error:
        yield ("model.name",), str(error)


def forward_flops(model: nn.Module, image_size: int) -> int:
    """Floating-point operations (2 a multiply-add) of the convolutions and products of one image's forward."""
    with FlopCounterMode(display=False) as counter:
        _dry_run(model, image_size, batch=1, training=False)
    return int(counter.get_total_flops())


def _find(name: str) -> Callable[..., nn.Module]:
    if name in MODELS:
        return MODELS[name]
    if ":" in name:
        return _import(name)
    names = _torchvision_names()
    if name not in names:
        near = difflib.get_close_matches(name, [*MODELS, *names], n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InputError(
            f"unknown model{hint}; valid: {', '.join(MODELS)}, a torchvision classifier such as mobilenet_v3_small, "
            "or your own package.module:callable"
        )
    from torchvision.models import get_model_builder

    builder: Callable[..., nn.Module] = get_model_builder(name)
    return builder


def _torchvision_names() -> list[str]:
    import torchvision

    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _import(name: str) -> Callable[..., nn.Module]:
    module_name, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputError(f"{error}; looked for in the current folder and the installed packages") from error
    if not callable(found):
        raise InputError(f"{attribute} in {module_name} is not callable")
    make: Callable[..., nn.Module] = found
    return make


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
