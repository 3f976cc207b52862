"""What the network is given of uint8 images: on the device, normalised, in its dtype and layout."""

import torch
from torch import Tensor

from distcnn.data.normalize import Normalize


class Preprocess:
    """uint8 images [n, H, W, C] → the network's input [n, C, H, W], on one device."""

    def __init__(
        self,
        normalize: Normalize,
        device: torch.device,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = True,
    ):
        self.device, self.dtype, self.channels_last = device, dtype, channels_last
        self.scale, self.shift = normalize.constants(device)
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}  # by an image's width: scale and shift, repeated over a row

    def input(self, images: Tensor) -> Tensor:
        """Images [n, H, W, C] uint8, on the device → the network's input [n, C, H, W]."""
        return self.layout(self.normalized(images))

    def to_device(self, host: Tensor) -> Tensor:
        """Make a copy that neither side waits for: pinned memory, non-blocking. On the CPU, the tensor itself."""
        if self.device.type == "cpu":
            return host
        return host.pin_memory().to(self.device, non_blocking=True)

    def normalized(self, images: Tensor) -> Tensor:
        """Images [n, H, W, C] uint8 → [n, H, W, C] float32."""
        n, height, width, channels = images.shape
        # Constants as long as a row: over three channels only, the CPU's loops would not be vectorised.
        if width not in self.rows:
            self.rows[width] = self.scale.repeat(width), self.shift.repeat(width)
        scale, shift = self.rows[width]
        rows = images.reshape(n, height, width * channels).float()
        return torch.addcmul(shift, rows, scale).view(images.shape)

    def layout(self, images: Tensor) -> Tensor:
        """Images [n, H, W, C] float32 → [n, C, H, W] in the network's dtype, NHWC in memory or contiguous."""
        out = images.to(self.dtype).permute(0, 3, 1, 2)
        return out if self.channels_last else out.contiguous()
