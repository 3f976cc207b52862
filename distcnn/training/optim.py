"""Optimizers, with weight decay where it belongs."""

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from distcnn.config import OptimConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for convolutions and linear layers; none for BatchNorm's parameters and biases, which are 1-d.

    Decay on these only shrinks scales that the next normalisation restores (He et al. 2018, "Bag of tricks",
    arXiv:1812.01187, section 3.1).
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if weight_decay == 0:
        return [{"params": trained, "weight_decay": 0.0}]  # one group: one kernel a step
    groups: list[dict[str, object]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: OptimConfig, lr: float) -> Optimizer:
    """The configured optimizer, in PyTorch's fused form: one kernel for all parameters, on the CPU too."""
    groups = parameter_groups(model, config.weight_decay)
    if config.name == "sgd":
        return SGD(groups, lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
    make = Adam if config.name == "adam" else AdamW
    return make(groups, lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
