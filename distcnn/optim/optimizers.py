"""The optimizer of a run: parameter groups, learning rate, and state remapped to other groups."""

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from distcnn.config.schema import OptimConfig
from distcnn.errors import InputError
from distcnn.optim import OPTIMIZERS


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Group the trained parameters by learning rate and weight decay: matrices and filters, the head, 1-d ones.

    The head is the weight matrix of the last linear layer. Biases and BatchNorm parameters, which are 1-d, get no
    weight decay (He et al. 2018, "Bag of tricks", arXiv:1812.01187, section 3.1). `lr_scale` is a group's learning rate
    relative to the base rate. Groups with equal values are merged, so that they take one kernel per step. Raises
    InputError if `optim.head_lr` is set and the model has no head.
    """
    head = head_of(model)
    if config.head_lr is not None and head is None:
        raise InputError("optim.head_lr: the network has no linear layer, hence no head")
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for p in (p for p in model.parameters() if p.requires_grad):
        rate = config.head_lr if p is head else config.bias_lr if p.ndim <= 1 else None
        scale = 1.0 if rate is None else rate / config.lr
        decay = config.weight_decay if p.ndim > 1 else 0.0
        group = groups.setdefault((scale, decay), {"params": [], "lr_scale": scale, "weight_decay": decay})
        group["params"].append(p)
    return list(groups.values())


def head_of(model: nn.Module) -> Tensor | None:
    """Return the weight matrix of the last linear layer; None if there is none."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return linear[-1].weight if linear else None


def make_optimizer(model: nn.Module, config: OptimConfig, lr: float) -> Optimizer:
    """Build the configured optimizer with the base rate `lr`. Raises InputError for arguments it rejects."""
    try:
        optimizer: Optimizer = OPTIMIZERS.build(
            config.name, config.args, parameter_groups(model, config), lr=lr, model=model
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"optim.name = {config.name}, optim.args = {config.args}: {error}") from error
    if not isinstance(optimizer, Optimizer):
        raise InputError(
            f"optim.name = {config.name}: should return a torch.optim.Optimizer, not {type(optimizer).__name__}"
        )
    if config.weight_decay and "weight_decay" not in optimizer.defaults:
        raise InputError(f"optim.weight_decay = {config.weight_decay}: {config.name} has no weight decay; set it to 0")
    return optimizer


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the base learning rate, which each group multiplies by its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def regrouped(state: dict[str, Any], old: Optimizer, new: Optimizer) -> dict[str, Any]:
    """Remap an optimizer's state_dict from the parameter groups of `old` to those of `new`.

    A state_dict identifies parameters by their index in the groups, which change with weight decay or `head_lr`. All
    groups get the options of the first old one; the caller has to set the new ones.
    """
    place = {p: i for i, p in enumerate(p for group in old.param_groups for p in group["params"])}
    options = {key: value for key, value in state["param_groups"][0].items() if key != "params"}
    found: dict[str, Any] = {"state": {}, "param_groups": []}
    count = 0
    for group in new.param_groups:
        places = range(count, count + len(group["params"]))
        found["param_groups"].append(options | {"params": list(places)})
        kept = {i: place[p] for i, p in zip(places, group["params"], strict=True) if place[p] in state["state"]}
        found["state"] |= {i: state["state"][old_place] for i, old_place in kept.items()}
        count += len(places)
    return found
