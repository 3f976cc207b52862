"""A micro-batch, and how it is made of uint8 images that are on the device."""

from dataclasses import dataclass

from torch import Tensor

from distcnn.data.augment.pipeline import Pipeline
from distcnn.data.keyed import keyed
from distcnn.data.preprocess import Preprocess
from distcnn.data.samplers import MicroBatch

# A key beside the epochs' numbers, so that dropout's seeds are independent of the augmentation's.
_DROPOUT = 2**32


@dataclass(frozen=True)
class Batch:
    """One micro-batch on the training device."""

    images: Tensor  # [n, C, H, W] float32 or bfloat16, normalised
    labels: Tensor  # [n] int64; mixed ones are [n, classes] float32 probabilities
    weight: float  # its part of the global batch; see MicroBatch
    last: bool
    seed: int  # for what is random inside the model, such as dropout: of (run seed, epoch, position)


@dataclass(frozen=True)
class Finish:
    """What happens to a micro-batch on the device, whichever loader has brought it there."""

    preprocess: Preprocess
    pipeline: Pipeline
    seed: int  # of the run

    def __call__(self, images: Tensor, labels: Tensor, draws: Tensor, micro: MicroBatch) -> Batch:
        """Images [n, H, W, C] uint8, labels [n] and the draws [K, n] for normalised images, of a micro-batch."""
        floats = self.preprocess.normalized(images)
        floats, labels = self.pipeline.on_floats(floats, labels, draws, micro.step)
        dropout = keyed(self.seed, _DROPOUT + micro.epoch, micro.start) >> 1
        return Batch(self.preprocess.layout(floats), labels, micro.weight, micro.last, dropout)
