"""The native engine: DistributedDataParallel, autocast and, in fp16, a gradient scaler."""

import inspect
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distcnn.engine.base import Engine


class DDPEngine(Engine):
    """The engine on plain PyTorch."""

    def wrap(self) -> nn.Module:
        """Return `compute_model`, in DistributedDataParallel if there is a process group."""
        if not dist.is_initialized():
            return self.compute_model
        options: dict[str, Any] = {buffers_option(): False}
        return DistributedDataParallel(
            self.compute_model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **options,
        )

    @cached_property
    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss in fp16; disabled in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")


def buffers_option() -> str:
    """Return the name of DDP's option to broadcast buffers before every forward, which PyTorch 2.14 renamed.

    The engines switch it off: BatchNorm's statistics are averaged over the ranks after each step
    (training/batchnorm.py), and nothing else writes buffers.
    """
    names = inspect.signature(DistributedDataParallel).parameters
    return "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
