"""Test-time augmentation: which views, at which weight."""

import torch
from torch import nn

from distcnn.training.views import averaged_logits


class Pixels(nn.Module):
    """A linear network: the logits are pixels, so the mean of the views' logits can be written down."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        assert x.is_contiguous(memory_format=torch.channels_last)
        return x.flatten(1)


def test_the_views_and_their_weights():
    x = torch.arange(2 * 3 * 5 * 6.0).view(2, 3, 5, 6).to(memory_format=torch.channels_last)
    mirror = x.flip(-1)

    def moved(image, down):  # by one pixel along the diagonal, with reflected borders
        rows = [1, 0, 1, 2, 3] if down else [1, 2, 3, 4, 3]
        columns = [1, 0, 1, 2, 3, 4] if down else [1, 2, 3, 4, 5, 4]
        return image[:, :, rows][:, :, :, columns]

    crops = (x + mirror) / 4
    for down in (True, False):
        crops = crops + (moved(x, down) + moved(x, down).flip(-1)) / 8
    for views, expected, calls in (("one", x, 1), ("mirror", (x + mirror) / 2, 2), ("crops", crops, 6)):
        model = Pixels()
        torch.testing.assert_close(averaged_logits(model, x, views), expected.flatten(1))
        assert model.calls == calls
