"""Which layer loses the channels_last layout? Hooks on every layer say so, in forward and in backward."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

Report = Callable[[str], None]


def is_channels_last(x: Tensor) -> bool | None:
    """Whether [N, C, H, W] lies in memory as NHWC; None for other shapes, and where NCHW is the same order.

    With one channel, or one pixel, PyTorch's own answer is yes to both layouts, whatever the strides say
    (https://github.com/pytorch/pytorch/issues/37725, https://github.com/pytorch/pytorch/issues/47163).
    """
    if x.ndim != 4 or x.shape[1] == 1 or x.shape[2] * x.shape[3] == 1:
        return None
    return x.permute(0, 2, 3, 1).is_contiguous()


@contextmanager
def layout_audit(model: nn.Module) -> Iterator[list[str]]:
    """Watches the forwards and backwards inside it; the list names each place where the layout is lost, once.

    That is a layer (a module without children) that was given channels_last and gives something else, be it an
    output or, in backward, a gradient; or one that is given something else which no layer has made: what a forward
    itself computes in between, as by `view` or `contiguous`, has no name of its own.
    """
    lost: list[str] = []

    def report(text: str) -> None:
        if text not in lost:
            lost.append(text)

    named = WeakIdKeyDictionary()  # tensors whose layout is lost already, by a layer before
    handles = [
        layer.register_forward_hook(partial(_check, name, report, named))
        for name, layer in model.named_modules()
        if name and not list(layer.children())
    ]
    try:
        yield lost
    finally:
        for handle in handles:
            handle.remove()


def _check(name: str, report: Report, named: Any, layer: nn.Module, inputs: Any, output: Any) -> None:
    """A forward hook."""
    given, made = _images(inputs), _images(output)
    came = [is_channels_last(x) for x in given]
    for x in given:
        if is_channels_last(x) is False and x not in named:
            report(f"before {name} ({type(layer).__name__}), in forward: its input comes as NCHW")
            named[x] = True
    view = any(x.data_ptr() == y.data_ptr() for x in given for y in made)  # a permutation, say: nothing has moved
    for y in made:
        if is_channels_last(y) is False:
            named[y] = True
            if came and all(came) and not view:
                report(f"{name} ({type(layer).__name__}), in forward: NHWC becomes NCHW")
    if len(given) == len(made) == 1 and not view:
        _watch_gradients(given[0], made[0], f"{name} ({type(layer).__name__}), in backward: NHWC becomes NCHW", report)


def _watch_gradients(x: Tensor, y: Tensor, text: str, report: Report) -> None:
    """Hooks on the tensors, not on the layer: a layer's own cannot be used where the next one works in place."""
    if not (x.requires_grad and y.requires_grad):
        return
    came: list[bool | None] = []

    def at_input(gradient: Tensor) -> None:
        if came and came[-1] and is_channels_last(gradient) is False:
            report(text)

    y.register_hook(lambda gradient: came.append(is_channels_last(gradient)))  # type: ignore[no-untyped-call]
    x.register_hook(at_input)  # type: ignore[no-untyped-call]


def _images(values: Any) -> list[Tensor]:
    values = values if isinstance(values, tuple | list) else (values,)
    return [value for value in values if isinstance(value, Tensor) and value.ndim == 4]
