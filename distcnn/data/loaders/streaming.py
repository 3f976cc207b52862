"""The streaming loader, for images that do not fit into memory: DataLoader workers read and augment ahead."""

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
    """Read and augment in worker processes, one micro-batch per request.

    Images are copied to the device as uint8, a quarter of the traffic of float32, and normalised there. Yields the same
    samples and pixels as a ResidentLoader, in the same order.
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
            batch_size=None,  # no batching: a request is a micro-batch
            num_workers=workers,
            pin_memory=cuda,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_group,
            generator=torch.Generator(),  # keeps the workers' base seed from advancing the global generator
        )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield this rank's micro-batches of an epoch, starting at `first_step` of the epoch."""
        self.sampler.set_epoch(epoch, first_step)
        copied = _copy_ahead(self.loader, self.preprocess.device, self.side)
        for (images, labels, draws), micro in zip(copied, self.sampler.micro_batches(), strict=True):
            yield self.finish(images, labels, draws, micro)


def _copy_ahead(
    batches: Iterable[Sequence[Tensor]], device: torch.device, side: torch.cuda.Stream | None
) -> Iterator[Sequence[Tensor]]:
    """Copy batches of pinned tensors to the device; on CUDA in the stream `side`, overlapping with compute.

    The host runs ahead of the GPU and requests a batch long before the previous one is computed. In the compute stream
    the copy would be queued behind that work; in its own stream it is not.
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
            tensor.record_stream(current)  # allocated in `side`: reuse its memory only when `current` is done
        yield copies


def _leave_group(_: int) -> None:
    """Leave the rank's process group, so that Ctrl-C and Slurm signal the rank alone; it ends its workers."""
    os.setpgid(0, 0)


class _Requests:
    """Sampler that yields one request per micro-batch: (epoch, first position, indices)."""

    def __init__(self, sampler: MicroBatchSampler):
        self.sampler = sampler

    def __iter__(self) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
        order = self.sampler.order().numpy()
        for micro in self.sampler.micro_batches():
            yield micro.epoch, micro.start, order[micro.start : micro.stop]

    def __len__(self) -> int:
        return sum(1 for _ in self.sampler.micro_batches())


class _AugmentedImages(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Maps a request to images [n, H, W, C] uint8, labels [n] int64 and the draws [K, n] of `on_floats`."""

    def __init__(self, data: ImageSet, pipeline: Pipeline, seed: int):
        self.data, self.pipeline, self.seed = data, pipeline, seed

    def __getitem__(self, request: tuple[int, int, NDArray[np.int64]]) -> tuple[Tensor, Tensor, Tensor]:
        epoch, start, indices = request
        positions = np.arange(start, start + len(indices))
        places = Places(self.seed, epoch, positions, indices, *self.data.images.shape[1:3])
        on_bytes, images = self.pipeline.on_bytes, torch.from_numpy(self.data.images[indices])
        images = on_bytes(images, on_bytes.draw(places))
        return images, torch.from_numpy(self.data.labels[indices]), self.pipeline.on_floats.draw(places)
