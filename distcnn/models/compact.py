"""A small VGG-like network for short training runs on few cores."""

from torch import Tensor, nn


class CompactCNN(nn.Module):
    """A stem and three blocks of two 3×3 convolutions; pooling precedes BatchNorm and activation.

    The layout of the published CIFAR-10 speed-runs (Jordan 2024, arXiv:2404.00498), narrower, with an ordinary
    trained stem. As there, the convolutions of the blocks are initialised to the identity on their first channels
    (Dirac), so that gradients reach the stem from the first step.
    """

    def __init__(
        self,
        num_classes: int = 10,
        stem: int = 16,
        widths: tuple[int, ...] = (32, 96, 128),
        scale: float = 1 / 9,
    ):
        super().__init__()
        layers = [nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)]
        before = stem
        for width in widths:
            layers += [
                nn.Conv2d(before, width, 3, padding=1, bias=False),
                nn.MaxPool2d(2),
                nn.BatchNorm2d(width),
            ]
            layers += [
                nn.ReLU(inplace=True),
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            before = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(before, num_classes, bias=False)
        for layer in layers[1:]:
            if isinstance(layer, nn.Conv2d):
                nn.init.dirac_(layer.weight.data[: layer.in_channels])
        self.scale = scale  # of the logits, so that the head learns more slowly than the features

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W], H and W at least 8, to [N, classes] logits. Shapes below: 32×32 images, default widths."""
        x = self.features(x)  # [N, 16, 32, 32], [N, 32, 16, 16], [N, 96, 8, 8], [N, 128, 4, 4]
        logits: Tensor = self.head(x.amax(dim=(2, 3))) * self.scale
        return logits
