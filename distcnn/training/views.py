"""Test-time augmentation: the logits of several views of an image, averaged."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Views = Literal["one", "mirror", "crops"]


def averaged_logits(model: nn.Module, images: Tensor, views: Views) -> Tensor:
    """[n, C, H, W] → [n, classes] float32.

    `mirror`: of the image and its mirror image. `crops`: half of the weight goes to these two, the other half to the
    same two of the image moved by one pixel up and left, and down and right, with reflected borders: six forwards
    (Jordan 2024, arXiv:2404.00498, section 3.5).
    """
    if views == "one":
        return model(images).float()  # type: ignore[no-any-return]

    def mirrored(x: Tensor) -> Tensor:
        return (model(x).float() + model(x.flip(-1)).float()) / 2  # type: ignore[no-any-return]

    whole = mirrored(images)
    if views == "mirror":
        return whole
    height, width = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format  # of a crop: that of the images
    crops = [padded[..., i : i + height, i : i + width].contiguous(memory_format=layout) for i in (0, 2)]
    moved = [mirrored(crop) for crop in crops]
    return whole / 2 + (moved[0] + moved[1]) / 4
