"""Residual networks for small images."""

from functools import partial

from torch import Tensor, nn


def resnet18(num_classes: int = 10, stochastic_depth: float = 0.0) -> nn.Module:
    """ResNet-18 (He et al. 2015, arXiv:1512.03385) with the stem for small images: 11,173,962 parameters.

    As in the paper's CIFAR networks, the first convolution is 3×3 with stride 1 and is not followed by pooling, so
    that 32×32 images reach the last stage at 4×4 instead of 1×1.

    Stochastic depth (Huang et al. 2016, arXiv:1603.09382): in training, block l of the 8 drops its residual branch
    for each image with probability l/8 · `stochastic_depth`; surviving branches are divided by their survival
    probability, so that evaluation needs no correction.
    """
    from torchvision.models import resnet18 as for_imagenet

    model: nn.Module = for_imagenet(num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    if stochastic_depth:
        branch_ends = [m for name, m in model.named_modules() if name.endswith(".bn2")]
        for number, last in enumerate(branch_ends, 1):
            # A hook instead of a module, to keep torchvision's parameter names.
            last.register_forward_hook(partial(_drop_branches, stochastic_depth * number / len(branch_ends)))
    return model


def _drop_branches(probability: float, module: nn.Module, _: object, branch: Tensor) -> Tensor:
    from torchvision.ops import stochastic_depth

    dropped: Tensor = stochastic_depth(branch, probability, mode="row", training=module.training)
    return dropped


class ResNet9(nn.Module):
    """ResNet-9 (Page 2018, "How to train your ResNet", a DAWNBench entry for CIFAR-10).

    `width` is the number of channels of the first layer (64 in the original: 6.6 M parameters); the cost grows
    quadratically with it. `scale` multiplies the logits (0.125 in the original), which slows the head's learning.
    """

    def __init__(self, num_classes: int = 10, width: int = 64, scale: float = 0.125):
        super().__init__()
        w = width
        self.stem = _conv(3, w)
        self.stage1 = nn.Sequential(_conv(w, 2 * w), nn.MaxPool2d(2), _Residual(2 * w))
        self.stage2 = nn.Sequential(_conv(2 * w, 4 * w), nn.MaxPool2d(2))
        self.stage3 = nn.Sequential(_conv(4 * w, 8 * w), nn.MaxPool2d(2), _Residual(8 * w))
        self.head = nn.Linear(8 * w, num_classes, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W], H and W at least 8, to [N, classes] logits. Shapes below: 32×32 images, width 64."""
        x = self.stem(x)  # [N, 64, 32, 32]
        x = self.stage1(x)  # [N, 128, 16, 16]
        x = self.stage2(x)  # [N, 256, 8, 8]
        x = self.stage3(x)  # [N, 512, 4, 4]
        x = x.amax(dim=(2, 3))  # [N, 512]: global max pooling, for any image size
        logits: Tensor = self.head(x) * self.scale
        return logits


class _Residual(nn.Module):
    """x + f(x), where f is two convolutions of the same width."""

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.Sequential(_conv(channels, channels), _conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.convs(x)
        return out


def _conv(before: int, after: int) -> nn.Sequential:
    """3×3 convolution with padding, BatchNorm, ReLU: [N, before, H, W] → [N, after, H, W]."""
    conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True))
