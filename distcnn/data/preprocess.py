"""uint8 images to network input: device transfer, normalisation, dtype and memory layout."""

import torch
from torch import Tensor

from distcnn.data.normalize import Normalize


class Preprocess:
    """Turn uint8 images [n, H, W, C] into the network's input [n, C, H, W] on one device."""

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
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}  # image width → scale and shift, repeated over a row

    def input(self, images: Tensor) -> Tensor:
        """Normalise and lay out images [n, H, W, C] uint8 on the device as the network's input [n, C, H, W]."""
        return self.layout(self.normalized(images))

    def to_device(self, host: Tensor) -> Tensor:
        """Copy to the device asynchronously, through pinned memory. Returns the tensor itself on the CPU."""
        if self.device.type == "cpu":
            return host
        return host.pin_memory().to(self.device, non_blocking=True)

    def normalized(self, images: Tensor) -> Tensor:
        """Normalise images [n, H, W, C] uint8 to float32 of the same shape."""
        n, height, width, channels = images.shape
        # Repeated to the length of a row, so that the CPU kernel is vectorised: three channels are too short a loop.
        if width not in self.rows:
            self.rows[width] = self.scale.repeat(width), self.shift.repeat(width)
        scale, shift = self.rows[width]
        rows = images.reshape(n, height, width * channels).float()
        return torch.addcmul(shift, rows, scale).view(images.shape)

    def layout(self, images: Tensor) -> Tensor:
        """Convert images [n, H, W, C] float32 to [n, C, H, W] in the network's dtype, channels_last or contiguous."""
        out = images.to(self.dtype).permute(0, 3, 1, 2)
        return out if self.channels_last else out.contiguous()
