"""A tutorial-style network: two convolutions, two linear layers."""

import torch.nn.functional as F
from torch import Tensor, nn


class SimpleCNN(nn.Module):
    """Network without normalisation layers, whose result does not depend on the division into micro-batches.

    315,722 parameters for 10 classes of 32×32 images. Raises ValueError for images smaller than 10×10.
    """

    def __init__(self, num_classes: int = 10, image_size: int = 32):
        super().__init__()
        if image_size < 10:
            raise ValueError(f"simple_cnn needs images of at least 10×10 pixels, not {image_size}×{image_size}")
        side = ((image_size - 2) // 2 - 2) // 2  # after two unpadded 3×3 convolutions, each with a 2×2 max-pool
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(64 * side * side, 128)
        self.fc2 = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, 3, H, W] to [N, classes] logits. Shapes below: 32×32 images."""
        # ReLU is monotonic, so pooling first gives the same values and gradients, with a quarter of the work.
        x = F.relu(F.max_pool2d(self.conv1(x), 2), inplace=True)  # [N, 32, 15, 15]
        x = F.relu(F.max_pool2d(self.conv2(x), 2), inplace=True)  # [N, 64, 6, 6]
        x = F.relu(self.fc1(x.flatten(1)))  # [N, 128]
        logits: Tensor = self.fc2(x)  # [N, classes]
        return logits
