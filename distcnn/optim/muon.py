"""Muon for filters and hidden matrices, SGD with Nesterov momentum for the rest, as one optimizer."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from distcnn.config.schema import Config
from distcnn.config.types import Float
from distcnn.optim.optimizers import head_of
from distcnn.registry import Problem, checked_by

# A quintic of maximal slope at zero that still maps all singular values near 1 (Jordan et al. 2024, "Muon: an
# optimizer for hidden layers in neural networks", https://kellerjordan.github.io/posts/muon/).
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrix: Tensor, steps: int = 3) -> Tensor:
    """Return [m, n] with the singular vectors of `matrix` and most singular values in about 0.5…1.5, in its dtype.

    Newton-Schulz iteration in bfloat16 on the smaller of the two Gram matrices.
    """
    a, b, c = _COEFFICIENTS
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)  # the largest singular value is below 1
    wide = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(steps):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    flat: Tensor = wide.T if x.shape[0] > x.shape[1] else wide
    return flat.to(matrix.dtype)


def _check(config: Config, _: Mapping[str, Any]) -> Iterator[Problem]:
    if config.train.precision == "fp16":
        yield ("optim.name", "train.precision"), "muon cannot skip a step whose gradients overflow; use bf16"


@checked_by(_check)
class Muon(Optimizer):
    """Update filters and hidden matrices by Muon, the head and everything else by SGD, all with Nesterov momentum.

    A filter bank [out, in, kh, kw] is treated as one matrix [out, in·kh·kw]. With `fixed_norm` it is scaled to the norm
    √out before each step, for networks that normalise after every convolution, where a growing norm only shrinks the
    effective step; otherwise each step is multiplied by √max(1, out / (in·kh·kw)). Weight decay is decoupled and uses
    the base learning rate: weight ← weight · (1 - lr / lr_scale · weight_decay).
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        model: nn.Module | None = None,
        *,
        momentum: Annotated[Float, Field(ge=0, lt=1, description="Nesterov momentum, of Muon and of SGD")] = 0.9,
        fixed_norm: Annotated[
            bool,
            Field(
                description="scale each filter bank to the norm √filters before a step, cancelling weight decay; for "
                "networks with BatchNorm after each convolution"
            ),
        ] = False,
    ):
        """`params` are groups; with `model`, its filters and matrices are split off into groups with `filters=True`."""
        defaults = {"lr": lr, "lr_scale": 1.0, "momentum": momentum, "weight_decay": 0.0, "filters": False}
        groups = list(params) if model is None else _split_filters(list(params), model)
        super().__init__(groups, defaults | {"fixed_norm": fixed_norm})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all weights that have a gradient; `closure` must be None."""
        assert closure is None
        for group in self.param_groups:
            weights: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            gradients: list[Tensor] = [p.grad for p in weights if p.grad is not None]
            for p in weights:
                if not self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            velocities = [self.state[p]["momentum_buffer"] for p in weights]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, gradients)
            updates = list(torch._foreach_add(gradients, velocities, alpha=group["momentum"]))
            if decay := group["lr"] / group["lr_scale"] * group["weight_decay"]:
                torch._foreach_mul_(weights, 1 - decay)
            if group["filters"]:
                updates = [self._filters(p, u, group["fixed_norm"]) for p, u in zip(weights, updates, strict=True)]
            torch._foreach_add_(weights, updates, alpha=-group["lr"])

    @staticmethod
    def _filters(weight: Tensor, update: Tensor, fixed_norm: bool) -> Tensor:
        # In memory order, without a copy: a channels_last bank is stored as [out, kh, kw, in], and the order of the
        # columns does not affect the singular values.
        flat = update.permute(0, *range(2, update.ndim), 1).flatten(1)  # [out, kh·kw·in]
        step = orthogonalized(flat)
        rows, columns = flat.shape
        if fixed_norm:
            weight.mul_(rows**0.5 / weight.norm().clamp_min(1e-7))
        else:
            step *= max(1.0, rows / columns) ** 0.5
        kernel = update.shape[2:]
        return step.view(rows, *kernel, -1).permute(0, -1, *range(1, update.ndim - 1))


def _split_filters(groups: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """Split each group into filters and the rest, marked by `filters`, in the order of the model's parameters."""
    # By layer, not by ndim: a per-channel scale may be [C, 1, 1].
    matrices = {m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)} - {head_of(model)}
    group_of = {p: i for i, group in enumerate(groups) for p in group["params"]}
    found: dict[tuple[int, bool], dict[str, Any]] = {}
    for p in (p for p in model.parameters() if p in group_of):
        filters = p in matrices
        split = found.setdefault((group_of[p], filters), groups[group_of[p]] | {"params": [], "filters": filters})
        split["params"].append(p)
    return list(found.values())
