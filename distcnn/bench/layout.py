"""Find the layers that lose the channels_last layout, in forward or backward, by hooks on every layer."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

Report = Callable[[str], None]


def is_channels_last(x: Tensor) -> bool | None:
    """Return whether [N, C, H, W] is stored as NHWC; None for other shapes, and if NCHW is the same order.

    With one channel or one pixel, PyTorch reports both layouts, whatever the strides
    (https://github.com/pytorch/pytorch/issues/37725, https://github.com/pytorch/pytorch/issues/47163).
    """
    if x.ndim != 4 or x.shape[1] == 1 or x.shape[2] * x.shape[3] == 1:
        return None
    return x.permute(0, 2, 3, 1).is_contiguous()


@contextmanager
def layout_audit(model: nn.Module) -> Iterator[list[str]]:
    """Watch the forwards and backwards inside the context; yield a list that names each loss of the layout once.

    Named are layers (modules without children) that turn a channels_last input, or in backward a gradient, into another
    layout, and layers whose input lost the layout between two layers, by a `view` or `contiguous` in some forward.
    """
    lost: list[str] = []

    def report(text: str) -> None:
        if text not in lost:
            lost.append(text)

    known = WeakIdKeyDictionary()  # tensors whose lost layout is already reported, or comes from an earlier layer
    handles = [
        layer.register_forward_hook(partial(_check, name, report, known))
        for name, layer in model.named_modules()
        if name and not list(layer.children())
    ]
    try:
        yield lost
    finally:
        for handle in handles:
            handle.remove()


def _check(name: str, report: Report, known: Any, layer: nn.Module, inputs: Any, output: Any) -> None:
    """Forward hook: report a lost layout, and watch the gradients."""
    given, made = _images(inputs), _images(output)
    layouts = [is_channels_last(x) for x in given]
    for x in given:
        if is_channels_last(x) is False and x not in known:
            report(f"before {name} ({type(layer).__name__}), in forward: its input is NCHW")
            known[x] = True
    view = any(x.data_ptr() == y.data_ptr() for x in given for y in made)  # such as a permutation: no data has moved
    for y in made:
        if is_channels_last(y) is False:
            known[y] = True
            if layouts and all(layouts) and not view:
                report(f"{name} ({type(layer).__name__}), in forward: NHWC becomes NCHW")
    if len(given) == len(made) == 1 and not view:
        _watch_gradients(given[0], made[0], f"{name} ({type(layer).__name__}), in backward: NHWC becomes NCHW", report)


def _watch_gradients(x: Tensor, y: Tensor, text: str, report: Report) -> None:
    """Hook the tensors, because a layer's backward hook fails if the next layer works in place."""
    if not (x.requires_grad and y.requires_grad):
        return
    layouts: list[bool | None] = []

    def at_input(gradient: Tensor) -> None:
        if layouts and layouts[-1] and is_channels_last(gradient) is False:
            report(text)

    y.register_hook(lambda gradient: layouts.append(is_channels_last(gradient)))  # type: ignore[no-untyped-call]
    x.register_hook(at_input)  # type: ignore[no-untyped-call]


def _images(values: Any) -> list[Tensor]:
    values = values if isinstance(values, tuple | list) else (values,)
    return [value for value in values if isinstance(value, Tensor) and value.ndim == 4]
