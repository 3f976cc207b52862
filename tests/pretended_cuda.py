"""A GPU that is only pretended: tensors on cuda:0 with shape, dtype and device, but no values (PyTorch's FakeTensorMode).

An operation on a CPU tensor and a CUDA tensor raises, and so does reading a value on the host. Nothing is computed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distcnn.data.samplers import MicroBatchSampler

CUDA = torch.device("cuda", 0)


class PretendedDevice(TorchDispatchMode):
    """What crosses between host and device is noted; of fused optimizers, for which there is no formula without
    values, only the devices are looked at.
    """

    def __init__(self) -> None:
        super().__init__()
        self.crossings: list[str] = []  # operations with tensors of both

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do it, but a fused step."""
        fused = func._schema.name.startswith("aten::_fused_")
        made = None if fused else func(*args, **(kwargs or {}))
        devices = {t.device for t in tree_leaves((args, kwargs, made)) if isinstance(t, Tensor)}
        assert not fused or devices == {CUDA}, f"{func} on {devices}"
        if len(devices) > 1:
            self.crossings.append(str(func))
        return made


@contextmanager
def pretended_cuda() -> Iterator[PretendedDevice]:
    """Within, there is one GPU for tensors, autocast, seeds, backwards and fused optimizers; streams there are not."""
    with pytest.MonkeyPatch.context() as patch:
        # torch.cuda.is_available stays false: FakeTensorMode asks it whether it may touch a driver.
        patch.setattr(torch.cuda, "manual_seed", lambda seed: None)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.autograd, "backward", backward)
        patch.setattr(Tensor, "pin_memory", lambda host: host)
        patch.setattr(FakeTensor, "data_ptr", lambda tensor: 0)  # deepcopy asks for it
        for owner, name in (
            (MicroBatchSampler, "order"),
            (Tensor, "numpy"),
        ):  # an epoch's order is NumPy's, on the host
            patch.setattr(owner, name, with_values(getattr(owner, name)))
        with FakeTensorMode(allow_non_fake_inputs=True), PretendedDevice() as device:
            yield device


def with_values(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make` as it is where nothing is pretended."""

    def made(*arguments: Any) -> Any:
        with unset_fake_temporarily():
            return make(*arguments)

    return made


def on_cuda(model: nn.Module) -> nn.Module:
    """The model itself, with pretended parameters and buffers in place of its own; within `pretended_cuda`."""
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = nn.Parameter(p.detach().to(CUDA), p.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(CUDA)
    return model


def backward(loss: Tensor, *_: Any, **__: Any) -> None:
    """`loss.backward()` in Python: autograd's own engine asks the driver for the device's thread and stream.

    The formulas are autograd's, node by node from the loss to the leaves; so are the sums where ways meet.
    """
    assert loss.grad_fn is not None
    waiting: defaultdict[Any, int] = defaultdict(int)  # node → ways that lead to it and are not done
    seen, found = {loss.grad_fn}, [loss.grad_fn]
    while found:
        for node, _ in found.pop().next_functions:
            if node is not None:
                waiting[node] += 1
                if node not in seen:
                    seen.add(node)
                    found.append(node)
    arrived: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    ready = [loss.grad_fn]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            inputs = arrived.pop(node)
            if hasattr(node, "variable"):  # a leaf
                p, gradient = node.variable, inputs[0]
                p.grad = gradient if p.grad is None else p.grad.add_(gradient)
                continue
            outputs = node(*(inputs.get(i) for i in range(max(inputs) + 1)))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            for (following, index), gradient in zip(node.next_functions, outputs, strict=True):
                if following is None:
                    continue
                if gradient is not None:
                    known = following._input_metadata[index]
                    assert gradient.device == known.device
                    if tuple(gradient.shape) != tuple(known.shape):  # what was broadcast
                        gradient = gradient.sum_to_size(known.shape)
                    places = arrived.setdefault(following, {})
                    places[index] = places[index] + gradient if index in places else gradient
                waiting[following] -= 1
                if waiting[following] == 0:
                    ready.append(following)
