"""Optimizers, with weight decay and learning rates where they belong."""

from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from distcnn.config.schema import OptimConfig
from distcnn.errors import InputError
from distcnn.optim.muon import Muon


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Up to three groups: filters and hidden matrices; the head (the last linear layer's matrix); what is 1-d.

    Biases and BatchNorm's parameters, which are 1-d, get no weight decay: it only shrinks scales that the next
    normalisation restores (He et al. 2018, "Bag of tricks", arXiv:1812.01187, section 3.1). `lr_scale` is a group's
    rate as a share of the base rate. Groups that would be treated alike are one: one kernel a step.
    Raises InputError for a head's rate where there is no head.
    """
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    if config.head_lr is not None and not linear:
        raise InputError(
            "optim.head_lr: the network has no linear layer, so there is no head to give a rate of its own"
        )
    # Not every tensor of two dimensions or more is a matrix of a layer: a scale per channel may be [C, 1, 1].
    matrices = {*linear, *(m.weight for m in model.modules() if isinstance(m, nn.Conv2d))}
    muon = config.name == "muon"
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for p in (p for p in model.parameters() if p.requires_grad):
        head = bool(linear) and p is linear[-1]
        rate = config.head_lr if head else config.bias_lr if p.ndim <= 1 else None
        scale = 1.0 if rate is None else rate / config.lr
        decay = config.weight_decay if p.ndim > 1 else 0.0
        filters = muon and p in matrices and not head
        group = groups.setdefault((filters, scale, decay), {"params": [], "lr_scale": scale, "weight_decay": decay})
        group["params"].append(p)
        if muon:
            group["filters"] = filters
    return list(groups.values())


def set_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the base rate: each group takes its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def make_optimizer(model: nn.Module, config: OptimConfig, lr: float) -> Optimizer:
    """The configured optimizer; PyTorch's own in their fused form: one kernel for all parameters, on the CPU too."""
    groups = parameter_groups(model, config)
    if config.name == "muon":
        return Muon(groups, lr, config.momentum, fixed_norm=config.fixed_norm)
    if config.name == "sgd":
        sgd = SGD(groups, lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
        if config.momentum:
            # Made here as zeros, which gives the same first step: made by a first step that fp16 then skips, the fused
            # form's would stay uninitialised memory.
            for p in (p for group in sgd.param_groups for p in group["params"]):
                sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return sgd
    make = Adam if config.name == "adam" else AdamW
    return make(groups, lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def regrouped(state: dict[str, Any], model: nn.Module, before: OptimConfig, now: OptimConfig) -> dict[str, Any]:
    """An optimizer's state_dict that was saved under `before`, as the optimizer of `now` takes it.

    It knows parameters by their places in the groups, and another weight decay, or a rate of its own for the head, may
    make other groups. Their options are to be set: here they are those of the first old group.
    """
    old, new = parameter_groups(model, before), parameter_groups(model, now)
    place = {p: i for i, p in enumerate(p for group in old for p in group["params"])}
    options = {key: value for key, value in state["param_groups"][0].items() if key != "params"}
    found: dict[str, Any] = {"state": {}, "param_groups": []}
    count = 0
    for group in new:
        places = range(count, count + len(group["params"]))
        found["param_groups"].append(options | {"params": list(places)})
        kept = {i: place[p] for i, p in zip(places, group["params"], strict=True) if place[p] in state["state"]}
        found["state"] |= {i: state["state"][was] for i, was in kept.items()}
        count += len(places)
    return found
