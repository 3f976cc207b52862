"""PyTorch's Adam and AdamW in their fused implementation: one kernel for all parameters, on the CPU too."""

from typing import Annotated, Any

from pydantic import Field
from torch.optim import Adam, AdamW

from distcnn.config.types import Float

Beta = Annotated[Float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], Field(description="decay rates of the averages of gradient and squared gradient")]
Eps = Annotated[Float, Field(gt=0, description="added to the root of the second average, for numerical stability")]


def adam(params: list[dict[str, Any]], lr: float, *, betas: Betas = (0.9, 0.999), eps: Eps = 1e-8) -> Adam:
    """Build torch.optim.Adam (Kingma and Ba 2015, arXiv:1412.6980); weight decay is an L2 term in the gradient."""
    return Adam(params, lr, betas=betas, eps=eps, fused=True)


def adamw(params: list[dict[str, Any]], lr: float, *, betas: Betas = (0.9, 0.999), eps: Eps = 1e-8) -> AdamW:
    """Build torch.optim.AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101); weight decay is decoupled."""
    return AdamW(params, lr, betas=betas, eps=eps, fused=True)
