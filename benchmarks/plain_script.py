"""What `distcnn train` starts up against: a script that imports, builds the tutorial's network and makes one step.

It reads no images. Prints the time of its end on the machine's monotonic clock.
"""

import json
import time

import torch
import torchvision  # noqa: F401  as any such script does
from torch import nn

model = nn.Sequential(
    nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(64 * 6 * 6, 128), nn.ReLU(), nn.Linear(128, 10),
)  # fmt: skip
optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
loss = nn.functional.cross_entropy(model(torch.randn(32, 3, 32, 32)), torch.randint(10, (32,)))
loss.backward()
optimizer.step()
print(json.dumps({"first_step": time.monotonic()}))
