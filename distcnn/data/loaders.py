"""Batches on the training device: resident (the uint8 images lie there) or streaming (DataLoader workers).

Both give the same samples and the same pixels, in the same order.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distcnn.data.augment.pipeline import Augment, Normalize, SmallAtFirst
from distcnn.data.keyed import keyed
from distcnn.data.samplers import MicroBatch, MicroBatchSampler, evaluation_batches
from distcnn.data.sources.load import ImageSet
from distcnn.distributed.device import whose
from distcnn.distributed.memory import fits, free_bytes, resident_problem, spare_bytes
from distcnn.distributed.world import World
from distcnn.errors import DeviceError

# A key beside the epochs' numbers, so that dropout's seeds are independent of the augmentation's.
_DROPOUT = 2**32


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the training device."""

    images: Tensor  # [n, C, H, W] float32 or bfloat16, normalised
    labels: Tensor  # [n] int64; mixed ones are [n, classes] float32 probabilities
    share: float  # of the global batch; see MicroBatch
    last: bool
    seed: int  # for what is random inside the model, such as dropout: of (run seed, epoch, position)


class Preprocess:
    """uint8 NHWC images → normalised NCHW input of the network, on one device."""

    def __init__(
        self,
        normalize: Normalize,
        device: torch.device,
        augment: Augment | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = True,
        small: SmallAtFirst | None = None,
    ):
        self.device, self.dtype, self.channels_last = device, dtype, channels_last
        self.augment, self.small = augment or Augment(), small
        self.scale, self.shift = normalize.constants(device)
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}  # by an image's width: scale and shift, repeated over a row

    def to_device(self, host: Tensor) -> Tensor:
        """A copy that neither side waits for: pinned memory, non-blocking. On the CPU, the tensor itself."""
        if self.device.type == "cpu":
            return host
        return host.pin_memory().to(self.device, non_blocking=True)

    def input(self, images: Tensor, draws: Tensor | None = None, step: int | None = None) -> Tensor:
        """[n, H, W, C] uint8 → [n, C, H, W]; with `draws`, cut out and mixed; small if it is so at that `step`."""
        n, height, width, channels = images.shape
        rows = images.reshape(n, height, width * channels).float()
        # Constants as long as a row: over three channels only, the CPU's loops would not be vectorised.
        if width not in self.rows:
            self.rows[width] = self.scale.repeat(width), self.shift.repeat(width)
        scale, shift = self.rows[width]
        rows = torch.addcmul(shift, rows, scale)
        if draws is not None and self.augment.cutout:
            rows.view(images.shape).permute(0, 3, 1, 2).masked_fill_(self.augment.cutout_mask(draws, height, width), 0)
        if draws is not None and self.augment.mix:
            rows = self.augment.mix.images(rows.view(images.shape), draws).view(rows.shape)
        if self.small is not None and step is not None and (size := self.small.size_at(step)):
            rows, height, width = self.small.reduce(rows, size), size, size
        out = rows.to(self.dtype).view(n, height, width, channels).permute(0, 3, 1, 2)  # NHWC in memory
        return out if self.channels_last else out.contiguous()

    def batch(
        self,
        images: Tensor,
        labels: Tensor,
        draws: Tensor | None,
        sampler: MicroBatchSampler,
        micro: MicroBatch,
        seed: int,
    ) -> Batch:
        """Images [n, H, W, C] uint8, flipped and cropped, labels [n] and draws of one of the epoch's micro-batches."""
        mix = self.augment.mix
        if draws is not None and mix is not None:
            labels = mix.targets(labels, draws, *images.shape[1:3])
        images = self.input(images, draws, sampler.step(micro))
        dropout = keyed(seed, _DROPOUT + sampler.epoch, micro.start) >> 1
        return Batch(images, labels, micro.share, micro.last, dropout)


class ResidentLoader:
    """All images as uint8 in memory, or on the GPU; each micro-batch is one gather, one normalisation."""

    def __init__(self, data: ImageSet, sampler: MicroBatchSampler, preprocess: Preprocess, seed: int):
        self.sampler, self.preprocess, self.seed = sampler, preprocess, seed
        self.images = torch.from_numpy(data.images).to(preprocess.device)  # [N, H, W, C] uint8
        self.labels = torch.from_numpy(data.labels).to(preprocess.device)  # [N] int64

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This rank's micro-batches of an epoch, from a step on."""
        self.sampler.set_epoch(epoch, first_step)
        pre, augment = self.preprocess, self.preprocess.augment
        # Order and draws go to the device once an epoch: a step then copies nothing from the host.
        order = self.sampler.order()
        draws = None
        if augment.active:
            positions = np.arange(self.sampler.size)
            draws = augment.draw(self.seed, epoch, positions, order.numpy(), *self.images.shape[1:3])
            draws = pre.to_device(draws)
        order = pre.to_device(order)
        for micro in self.sampler.micro_batches():
            indices = order[micro.start : micro.stop]
            images, chosen = self.images.index_select(0, indices), None
            if draws is not None:
                chosen = draws[micro.start : micro.stop]
                images = augment.batch(images, chosen)
            labels = self.labels.index_select(0, indices)
            yield pre.batch(images, labels, chosen, self.sampler, micro, self.seed)


class StreamingLoader:
    """For images that do not fit into memory: workers read and augment them, one micro-batch at a time.

    What crosses to the device is still uint8, a quarter of float32's traffic; it is normalised there.
    """

    def __init__(self, data: ImageSet, sampler: MicroBatchSampler, preprocess: Preprocess, seed: int, workers: int):
        self.sampler, self.preprocess, self.seed = sampler, preprocess, seed
        self.requests = _Requests(sampler)
        cuda = preprocess.device.type == "cuda"
        self.side = torch.cuda.Stream(preprocess.device) if cuda else None  # type: ignore[no-untyped-call]
        self.loader: DataLoader[Any] = DataLoader(
            _AugmentedImages(data, preprocess.augment, seed),
            sampler=self.requests,
            batch_size=None,  # a request is a whole micro-batch already
            num_workers=workers,
            pin_memory=cuda,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_group,
            generator=torch.Generator(),  # its own: a worker's base seed is not drawn from the global one
        )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This rank's micro-batches of an epoch, from a step on."""
        self.sampler.set_epoch(epoch, first_step)
        pre = self.preprocess
        copied = _copied(self.loader, pre.device, self.side)
        for (images, labels, draws), micro in zip(copied, self.sampler.micro_batches(), strict=True):
            yield pre.batch(images, labels, draws, self.sampler, micro, self.seed)


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
            yield self.sampler.epoch, micro.start, order[micro.start : micro.stop]

    def __len__(self) -> int:
        return sum(1 for _ in self.sampler.micro_batches())


class _AugmentedImages(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """A request → images [n, H, W, C] uint8, labels [n] int64, draws [n, 5 + k] int64."""

    def __init__(self, data: ImageSet, augment: Augment, seed: int):
        self.data, self.augment, self.seed = data, augment, seed

    def __getitem__(self, request: tuple[int, int, NDArray[np.int64]]) -> tuple[Tensor, Tensor, Tensor]:
        epoch, start, indices = request
        positions = np.arange(start, start + len(indices))
        draws = self.augment.draw(self.seed, epoch, positions, indices, *self.data.images.shape[1:3])
        images = self.augment.batch(torch.from_numpy(self.data.images[indices]), draws)
        if self.augment.randaugment is not None:
            images = self.augment.randaugment(images, keyed(self.seed, epoch), positions)
        return images, torch.from_numpy(self.data.labels[indices]), draws


class EvaluationLoader:
    """This rank's batches of an evaluation: each image of a data set on one rank, once, unaugmented, in its order.

    Each pass over it gives (batch number, images [n, C, H, W], labels [n]) anew. With `keep`, the uint8 images and the
    labels stay on a CUDA device after the first pass, if they fit beside all that the training has taken so far: later
    passes copy nothing from the host.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        preprocess: Preprocess,
        rank: int = 0,
        world_size: int = 1,
        *,
        keep: bool = True,
    ):
        self.data, self.batch_size, self.preprocess = data, batch_size, preprocess
        self.batches = evaluation_batches(len(data), batch_size, rank, world_size)
        self.keep = keep and preprocess.device.type == "cuda"
        self.kept: list[tuple[Tensor, Tensor]] = []  # of each batch

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        uploaded: list[tuple[Tensor, Tensor]] = []
        keeping = self.keep and not self.kept and fits(self._bytes(), spare_bytes(self.preprocess.device))
        for i, (number, rows) in enumerate(self.batches):
            images, labels = self.kept[i] if self.kept else self._upload(rows)
            if keeping:
                uploaded.append((images, labels))
            yield number, self.preprocess.input(images), labels
        if keeping:
            self.kept = uploaded

    def _upload(self, rows: range) -> tuple[Tensor, Tensor]:
        """uint8 images [n, H, W, C] and labels [n] on the device."""
        images, labels = (
            torch.from_numpy(array[rows.start : rows.stop]) for array in (self.data.images, self.data.labels)
        )
        return self.preprocess.to_device(images), self.preprocess.to_device(labels)

    def _bytes(self) -> int:
        """Of what this rank would keep."""
        own = sum(len(rows) for _, rows in self.batches)
        return -(-resident_bytes(self.data) * own // len(self.data))


def resident_bytes(data: ImageSet) -> int:
    """Bytes of a data set's images and labels on a device."""
    return data.images.nbytes + data.labels.nbytes


def check_resident(data: ImageSet, device: torch.device, world: World) -> None:
    """Raises DeviceError if a ResidentLoader would fill a CUDA device with these images. No collective: another process
    may have filled the GPU of this rank alone.
    """
    if device.type == "cuda" and (problem := resident_problem(resident_bytes(data), free_bytes(device))):
        raise DeviceError(f"{whose(world)}{problem}")
