"""Stochastic gradient descent with momentum: PyTorch's own, in its fused form."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch.optim import SGD

from distcnn.config.schema import Float
from distcnn.registry import Problem, checked_by


def _check(_: object, args: Mapping[str, Any]) -> Iterator[Problem]:
    if args["nesterov"] and args["momentum"] == 0:
        yield ("optim.args.nesterov", "optim.args.momentum"), "Nesterov's momentum needs a momentum above 0"


@checked_by(_check)
def sgd(
    params: list[dict[str, Any]],
    lr: float,
    *,
    momentum: Annotated[
        Float, Field(ge=0, lt=1, description="share of the last update that is added to the next")
    ] = 0.9,
    nesterov: Annotated[bool, Field(description="Nesterov's momentum")] = True,
) -> SGD:
    """Make torch.optim.SGD: one kernel for all parameters, on the CPU too."""
    optimizer = SGD(params, lr, momentum=momentum, nesterov=nesterov, fused=True)
    if momentum:
        # Made here as zeros, which gives the same first step: made by a first step that fp16 then skips, the fused
        # form's would stay uninitialised memory.
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer
