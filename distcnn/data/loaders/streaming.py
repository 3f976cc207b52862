"""Images that do not fit into memory: DataLoader workers read and augment them while the network computes."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distcnn.data.augment.operation import Places
from distcnn.data.augment.pipeline import Pipeline
from distcnn.data.loaders.batch import Batch, Finish
from distcnn.data.preprocess import Preprocess
from distcnn.data.samplers import MicroBatchSampler
from distcnn.data.sources.image_set import ImageSet


class StreamingLoader:
    """Workers read and augment one micro-batch at a time.

    What crosses to the device is still uint8, a quarter of float32's traffic; it is normalised there. The samples and
    the pixels are those of a ResidentLoader, in the same order.
    """

    def __init__(
        self,
        data: ImageSet,
        sampler: MicroBatchSampler,
        preprocess: Preprocess,
        pipeline: Pipeline,
        seed: int,
        workers: int,
    ):
        self.sampler, self.preprocess = sampler, preprocess
        self.finish = Finish(preprocess, pipeline, seed)
        cuda = preprocess.device.type == "cuda"
        self.side = torch.cuda.Stream(preprocess.device) if cuda else None  # type: ignore[no-untyped-call]
        self.loader: DataLoader[Any] = DataLoader(
            _AugmentedImages(data, pipeline, seed),
            sampler=_Requests(sampler),
            batch_size=None,  # a request is a whole micro-batch already
            num_workers=workers,
            pin_memory=cuda,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_group,
            generator=torch.Generator(),  # its own: a worker's base seed is not drawn from the global one
        )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Give this rank's micro-batches of an epoch, from a step on."""
        self.sampler.set_epoch(epoch, first_step)
        copied = _copied(self.loader, self.preprocess.device, self.side)
        for (images, labels, draws), micro in zip(copied, self.sampler.micro_batches(), strict=True):
            yield self.finish(images, labels, draws, micro)


def _copied(
    batches: Iterable[Sequence[Tensor]], device: torch.device, side: torch.cuda.Stream | None
) -> Iterator[Sequence[Tensor]]:
    """Batches of pinned tensors → on the device; on CUDA in the stream `side`, while the batch before computes.

    The host never waits for the GPU, so it asks for a batch long before the last one is computed. A copy put into the
    same stream would still wait for that; in a stream of its own it does not.
    """
    if side is None:
        yield from batches
        return
    for batch in batches:
        with torch.cuda.stream(side):
            copies = [tensor.to(device, non_blocking=True) for tensor in batch]
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        for tensor in copies:
            tensor.record_stream(current)  # its memory is `side`'s, to be reused only when `current` is done with it
        yield copies


def _leave_group(_: int) -> None:
    """A signal to the rank's process group, as Ctrl-C and Slurm send it, is for the rank, which ends its workers."""
    os.setpgid(0, 0)


class _Requests:
    """A sampler of micro-batches: (epoch, first position, indices)."""

    def __init__(self, sampler: MicroBatchSampler):
        self.sampler = sampler

    def __iter__(self) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        order = self.sampler.order().numpy()
        for micro in self.sampler.micro_batches():
            yield micro.epoch, micro.start, order[micro.start : micro.stop]

    def __len__(self) -> int:
        return sum(1 for _ in self.sampler.micro_batches())


class _AugmentedImages(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """A request → images [n, H, W, C] uint8, labels [n] int64, and the draws [K, n] for normalised images."""

    def __init__(self, data: ImageSet, pipeline: Pipeline, seed: int):
        self.data, self.pipeline, self.seed = data, pipeline, seed

    def __getitem__(self, request: tuple[int, int, NDArray[np.int64]]) -> tuple[Tensor, Tensor, Tensor]:
        epoch, start, indices = request
        positions = np.arange(start, start + len(indices))
        places = Places(self.seed, epoch, positions, indices, *self.data.images.shape[1:3])
        on_bytes, images = self.pipeline.on_bytes, torch.from_numpy(self.data.images[indices])
        images = on_bytes(images, on_bytes.draw(places))
        return images, torch.from_numpy(self.data.labels[indices]), self.pipeline.on_floats.draw(places)
