"""A micro-batch, and its construction from uint8 images on the device."""

from dataclasses import dataclass

from torch import Tensor

from distcnn.data.augment.pipeline import Pipeline
from distcnn.data.keyed import keyed
from distcnn.data.preprocess import Preprocess
from distcnn.data.samplers import MicroBatch

# Outside the range of epoch numbers, so that dropout seeds are independent of the augmentation.
_DROPOUT = 2**32


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the training device."""

    images: Tensor  # [n, C, H, W] float32 or bfloat16, normalised
    labels: Tensor  # [n] int64; mixed ones are [n, classes] float32 probabilities
    weight: float  # its fraction of the global batch; see MicroBatch
    last: bool  # of this rank in this step
    seed: int  # of randomness inside the model, such as dropout; keyed by (run seed, epoch, position)


@dataclass(frozen=True)
class Finish:
    """Normalise and augment a micro-batch on the device; shared by both training loaders."""

    preprocess: Preprocess
    pipeline: Pipeline
    seed: int  # of the run

    def __call__(self, images: Tensor, labels: Tensor, draws: Tensor, micro: MicroBatch) -> Batch:
        """Build a Batch of images [n, H, W, C] uint8, labels [n] int64 and the draws [K, n] of `on_floats`."""
        floats = self.preprocess.normalized(images)
        floats, labels = self.pipeline.on_floats(floats, labels, draws, micro.step)
        dropout = keyed(self.seed, _DROPOUT + micro.epoch, micro.start) >> 1
        return Batch(self.preprocess.layout(floats), labels, micro.weight, micro.last, dropout)
