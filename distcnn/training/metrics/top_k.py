"""Top-k accuracy."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from distcnn.config.types import Int


def top_k(
    logits: Tensor,
    targets: Tensor,
    *,
    k: Annotated[Int, Field(ge=1, description="guesses per image; with k classes or fewer, the metric is 1")] = 5,
) -> Tensor:
    """Count the images whose class is among the k largest logits.

    Logits [n, classes], targets [n] int64; returns [] int64.
    """
    guesses = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (guesses == targets[:, None]).sum()
