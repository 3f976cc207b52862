"""Cross-entropy loss, with label smoothing."""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distcnn.config.types import Float


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: Annotated[
        Float, Field(ge=0, lt=1, description="fraction of the target spread over all classes")
    ] = 0,
) -> Tensor:
    """Return the mean of -Σ q log p over the micro-batch, in nats, [] float32.

    Logits [n, k] float32; targets [n] int64, or [n, k] float32 probabilities. With label smoothing q = (1 - s) · target
    + s / k (Szegedy et al. 2016, arXiv:1512.00567, section 7).
    """
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
