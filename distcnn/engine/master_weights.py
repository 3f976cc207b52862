"""Precisions: autocast, and bfloat16 weights with float32 masters."""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "bf16", "bf16-master", "fp16"]
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "bf16-master": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Return the context of a forward, in training and in evaluation."""
    dtype = AUTOCAST[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def bf16_copy(model: nn.Module) -> nn.Module:
    """Copy a model with its matrices and filters in bfloat16; 1-d parameters and buffers are shared with `model`.

    Autocast would cast the weights in every forward, and their gradients in every backward.
    """
    shared = [*model.buffers(), *(p for p in model.parameters() if p.ndim <= 1)]
    copied: nn.Module = copy.deepcopy(model, {id(t): t for t in shared})
    for p in copied.parameters():
        if p.ndim > 1:
            p.data = p.data.bfloat16()
    return copied


class MasterWeights:
    """The bfloat16 weights of `compute_model` and their float32 masters in `model`; none if they are the same."""

    def __init__(self, model: nn.Module, compute_model: nn.Module):
        both = zip(compute_model.parameters(), model.parameters(), strict=True)
        pairs = [(p.data, master.data) for p, master in both if p is not master]
        self.copies: list[Tensor] = [p for p, _ in pairs]
        self.masters: list[Tensor] = [master for _, master in pairs]

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the masters into the bfloat16 weights."""
        if self.copies:
            torch._foreach_copy_(self.copies, self.masters)
