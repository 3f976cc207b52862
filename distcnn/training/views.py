"""Test-time augmentation (TTA): logits averaged over several views of an image."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Views = Literal["one", "mirror", "crops"]


def averaged_logits(model: nn.Module, images: Tensor, views: Views) -> Tensor:
    """Return the logits [n, classes] float32 of images [n, C, H, W], averaged over `views`.

    `mirror`: the image and its mirror image. `crops`: those two with half of the weight; the other half goes to the
    same two views of the image shifted by one pixel, up and left or down and right, with reflected borders: six
    forwards (Jordan 2024, arXiv:2404.00498, section 3.5).
    """
    if views == "one":
        return model(images).float()  # type: ignore[no-any-return]

    def mirrored(x: Tensor) -> Tensor:
        return (model(x).float() + model(x.flip(-1)).float()) / 2  # type: ignore[no-any-return]

    centred = mirrored(images)
    if views == "mirror":
        return centred
    height, width = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format  # crops keep the images' layout
    crops = [padded[..., i : i + height, i : i + width].contiguous(memory_format=layout) for i in (0, 2)]
    shifted = [mirrored(crop) for crop in crops]
    return centred / 2 + (shifted[0] + shifted[1]) / 4
