"""The loader of an evaluation: each image exactly once, on one rank, unaugmented."""

from collections.abc import Iterator

import torch
from torch import Tensor

from distcnn.data.loaders.resident import resident_bytes
from distcnn.data.preprocess import Preprocess
from distcnn.data.samplers import evaluation_batches
from distcnn.data.sources.image_set import ImageSet
from distcnn.distributed.memory import fits, spare_bytes


class EvaluationLoader:
    """This rank's batches of an evaluation; over all ranks, each image of the data set once, in order, unaugmented.

    Each iteration yields (batch number, images [n, C, H, W], labels [n]) from the start. With `keep`, the uint8 images
    and the labels stay on a CUDA device after the first pass if they fit into the memory that training leaves free, so
    that later passes copy nothing from the host.
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
        self.kept: list[tuple[Tensor, Tensor]] = []  # one per batch

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
        """Copy uint8 images [n, H, W, C] and labels [n] to the device."""
        images, labels = (
            torch.from_numpy(array[rows.start : rows.stop]) for array in (self.data.images, self.data.labels)
        )
        return self.preprocess.to_device(images), self.preprocess.to_device(labels)

    def _bytes(self) -> int:
        """Bytes that this rank would keep on the device."""
        own = sum(len(rows) for _, rows in self.batches)
        return -(-resident_bytes(self.data) * own // len(self.data))
