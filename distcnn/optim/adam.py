"""Adam and AdamW: PyTorch's own, in their fused form: one kernel for all parameters, on the CPU too."""

from typing import Annotated, Any

from pydantic import Field
from torch.optim import Adam, AdamW

from distcnn.config.schema import Float

Beta = Annotated[Float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], Field(description="decay of the averages of the gradient and of its square")]
Eps = Annotated[Float, Field(gt=0, description="added to the root of the second average")]


def adam(params: list[dict[str, Any]], lr: float, *, betas: Betas = (0.9, 0.999), eps: Eps = 1e-8) -> Adam:
    """Make torch.optim.Adam (Kingma and Ba 2015, arXiv:1412.6980); weight decay is an L2 term of the gradient."""
    return Adam(params, lr, betas=betas, eps=eps, fused=True)


def adamw(params: list[dict[str, Any]], lr: float, *, betas: Betas = (0.9, 0.999), eps: Eps = 1e-8) -> AdamW:
    """Make torch.optim.AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101); weight decay is decoupled."""
    return AdamW(params, lr, betas=betas, eps=eps, fused=True)
