"""The resident loader: all images in memory or on the GPU, a micro-batch being one gather."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from distcnn.data.augment.operation import Places
from distcnn.data.augment.pipeline import Pipeline
from distcnn.data.loaders.batch import Batch, Finish
from distcnn.data.preprocess import Preprocess
from distcnn.data.samplers import MicroBatch, MicroBatchSampler
from distcnn.data.sources.image_set import ImageSet
from distcnn.distributed.device import rank_prefix
from distcnn.distributed.memory import free_bytes, resident_problem
from distcnn.distributed.world import World
from distcnn.errors import DeviceError


class ResidentLoader:
    """Keep all uint8 images in memory, or on the GPU; each micro-batch is one gather and one normalisation.

    Yields the same samples and pixels as a StreamingLoader, in the same order.
    """

    def __init__(
        self, data: ImageSet, sampler: MicroBatchSampler, preprocess: Preprocess, pipeline: Pipeline, seed: int
    ):
        self.sampler, self.preprocess, self.pipeline, self.seed = sampler, preprocess, pipeline, seed
        self.finish = Finish(preprocess, pipeline, seed)
        self.images = torch.from_numpy(data.images).to(preprocess.device)  # [N, H, W, C] uint8
        self.labels = torch.from_numpy(data.labels).to(preprocess.device)  # [N] int64

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield this rank's micro-batches of an epoch, starting at `first_step` of the epoch."""
        self.sampler.set_epoch(epoch, first_step)
        on_bytes, on_floats = self.pipeline.on_bytes, self.pipeline.on_floats
        # Order and draws are copied to the device once per epoch, so that a step copies nothing from the host.
        order = self.sampler.order()
        places = Places(self.seed, epoch, np.arange(self.sampler.size), order.numpy(), *self.images.shape[1:3])
        early, late = (self.preprocess.to_device(part.draw(places)) for part in (on_bytes, on_floats))
        order = self.preprocess.to_device(order)
        for micro in self.sampler.micro_batches():
            rows = order[micro.start : micro.stop]
            images = on_bytes(self.images.index_select(0, rows), _columns(early, micro))
            labels = self.labels.index_select(0, rows)
            yield self.finish(images, labels, _columns(late, micro), micro)


def _columns(draws: Tensor, micro: MicroBatch) -> Tensor:
    """Slice draws [K, N] to the micro-batch's [K, n]; unsliced if K is 0, as a view costs microseconds per step."""
    return draws[:, micro.start : micro.stop] if len(draws) else draws


def resident_bytes(data: ImageSet) -> int:
    """Bytes that a data set's images and labels take on a device."""
    return data.images.nbytes + data.labels.nbytes


def check_resident(data: ImageSet, device: torch.device, world: World) -> None:
    """Raise DeviceError if these images leave too little free memory for the model on a CUDA device.

    Not a collective: the free memory may differ between ranks, and each reports its own.
    """
    if device.type == "cuda" and (problem := resident_problem(resident_bytes(data), free_bytes(device))):
        raise DeviceError(f"{rank_prefix(world)}{problem}")
