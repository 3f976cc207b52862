"""All images in memory, or on the GPU: a whole micro-batch is one gather."""

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
from distcnn.distributed.device import whose
from distcnn.distributed.memory import free_bytes, resident_problem
from distcnn.distributed.world import World
from distcnn.errors import DeviceError


class ResidentLoader:
    """uint8 images in memory, or on the GPU; each micro-batch is one gather, one normalisation.

    The samples and the pixels are those of a StreamingLoader, in the same order.
    """

    def __init__(
        self, data: ImageSet, sampler: MicroBatchSampler, preprocess: Preprocess, pipeline: Pipeline, seed: int
    ):
        self.sampler, self.preprocess, self.pipeline, self.seed = sampler, preprocess, pipeline, seed
        self.finish = Finish(preprocess, pipeline, seed)
        self.images = torch.from_numpy(data.images).to(preprocess.device)  # [N, H, W, C] uint8
        self.labels = torch.from_numpy(data.labels).to(preprocess.device)  # [N] int64

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Give this rank's micro-batches of an epoch, from a step on."""
        self.sampler.set_epoch(epoch, first_step)
        on_bytes, on_floats = self.pipeline.on_bytes, self.pipeline.on_floats
        # Order and draws go to the device once an epoch: a step then copies nothing from the host.
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
    """Draws [K, N] → [K, n] of a micro-batch; where K is 0, as they are: a view costs microseconds of each step."""
    return draws[:, micro.start : micro.stop] if len(draws) else draws


def resident_bytes(data: ImageSet) -> int:
    """Bytes of a data set's images and labels on a device."""
    return data.images.nbytes + data.labels.nbytes


def check_resident(data: ImageSet, device: torch.device, world: World) -> None:
    """Raise DeviceError if a ResidentLoader would fill a CUDA device with these images.

    No collective: another process may have filled the GPU of this rank alone.
    """
    if device.type == "cuda" and (problem := resident_problem(resident_bytes(data), free_bytes(device))):
        raise DeviceError(f"{whose(world)}{problem}")
