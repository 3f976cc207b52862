"""A training whose operations can be counted by hand, and the audit of a model's memory layout."""

import torch
from torch import nn

from distcnn.bench.layout import layout_audit
from distcnn.bench.measure import Steps
from distcnn.config.settings import Settings
from distcnn.distributed.world import World
from distcnn.training.run import Run

CPU = torch.device("cpu")


class TwoConvs(nn.Module):
    """[N, 3, 16, 16] → [N, 10]: a 3×3 convolution to 4 channels, one to 6, a linear layer."""

    def __init__(self, num_classes):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(6, num_classes)

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean(dim=(2, 3)))


# Multiply-adds of an image. The first layer's backward makes no gradient of the images.
FIRST, SECOND, HEAD = 16 * 16 * 4 * 3 * 9, 16 * 16 * 6 * 4 * 9, 6 * 10
FLOPS = 2 * (2 * FIRST + 3 * SECOND + 3 * HEAD)


def steps_of(*arguments, model=f"{__name__}:TwoConvs"):
    fixed = ["--data.source", "synthetic", "--data.image_size", "16", "--data.args.train", "100"]
    fixed += ["--train.batch_size", "24", "--train.micro_batch", "8", "--train.drop_last", "true"]
    config = Settings().read_arguments([*fixed, "--model.name", model, "--train.threads", "1", *arguments]).check(1)
    return Steps(Run(config, World()))


def audited(model, precision="fp32", size=32):
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, size, size).to(memory_format=torch.channels_last)
    with layout_audit(model) as lost, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        model(images).float().square().sum().backward()
    assert not any(layer._forward_hooks for layer in model.modules())
    return lost
