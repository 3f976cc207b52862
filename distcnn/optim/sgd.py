"""PyTorch's SGD with momentum, in its fused implementation."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.optim import SGD

from distcnn.config.types import Float
from distcnn.registry import Problem, checked_by


def _check(_: object, args: Mapping[str, Any]) -> Iterator[Problem]:
    if args["nesterov"] and args["momentum"] == 0:
        yield ("optim.args.nesterov", "optim.args.momentum"), "Nesterov momentum needs a momentum above 0"


@checked_by(_check)
def sgd(
    params: list[dict[str, Any]],
    lr: float,
    *,
    momentum: Annotated[
        Float, Field(ge=0, lt=1, description="fraction of the previous update that is added to the next")
    ] = 0.9,
    nesterov: Annotated[bool, Field(description="use Nesterov momentum")] = True,
) -> SGD:
    """Build torch.optim.SGD: one kernel for all parameters, on the CPU too."""
    optimizer = SGD(params, lr, momentum=momentum, nesterov=nesterov, fused=True)
    if momentum:
        # Start from zeros, which gives the same first step: the fused kernel allocates buffers in its first step, and
        # if fp16 skips that one, they stay uninitialised.
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer
