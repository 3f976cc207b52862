"""The images of an evaluation: each on one rank, once, unaugmented."""

from collections.abc import Iterator

import torch
from torch import Tensor

from distcnn.data.loaders.resident import resident_bytes
from distcnn.data.preprocess import Preprocess
from distcnn.data.samplers import evaluation_batches
from distcnn.data.sources.image_set import ImageSet
from distcnn.distributed.memory import fits, spare_bytes


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
        """Bring uint8 images [n, H, W, C] and labels [n] to the device."""
        images, labels = (
            torch.from_numpy(array[rows.start : rows.stop]) for array in (self.data.images, self.data.labels)
        )
        return self.preprocess.to_device(images), self.preprocess.to_device(labels)

    def _bytes(self) -> int:
        """Count what this rank would keep."""
        own = sum(len(rows) for _, rows in self.batches)
        return -(-resident_bytes(self.data) * own // len(self.data))
