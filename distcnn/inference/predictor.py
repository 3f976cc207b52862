"""Predict the classes of images, with the preprocessing of the training."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distcnn.data.samplers import evaluation_batches
from distcnn.data.sources.folder import decode
from distcnn.distributed.collectives import gather_objects
from distcnn.distributed.cores import cores
from distcnn.distributed.memory import explain_out_of_memory, prediction_fixes
from distcnn.distributed.world import World
from distcnn.engine.master_weights import autocast
from distcnn.inference.model import Trained, load_model
from distcnn.training.views import averaged_logits


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, or why it could not be read."""

    path: str
    classes: tuple[str, ...] = ()  # the most probable first; empty if the image could not be read
    probabilities: tuple[float, ...] = ()  # of `classes`
    problem: str = ""  # why the image could not be read


class Predictor:
    """A trained model that classifies image files, or decoded arrays.

    >>> predictor = Predictor("runs/digits", top=2)  # doctest: +SKIP
    >>> predictor(["seven.png"])[0].classes  # doctest: +SKIP
    ('7', '9')
    """

    def __init__(self, model: Trained | str | Path, *, top: int = 5, threads: int | None = None):
        """Predict the `top` classes; decode in `threads` threads. Raises InputError if there is no such model."""
        self.trained = model if isinstance(model, Trained) else load_model(model)
        self.top = min(top, len(self.trained.description.classes))
        self.threads = threads or cores()
        self.preprocess = self.trained.preprocess()

    @torch.inference_mode()
    def probabilities(self, images: NDArray[np.uint8]) -> Tensor:
        """Return [n, classes] float32 on the CPU, averaged over the run's views, for [n, S, S, 3] uint8 images.

        Raises distcnn.errors.OutOfMemoryError if the batch does not fit on the device.
        """
        trained, pre = self.trained, self.preprocess
        with explain_out_of_memory(trained.device, lambda: prediction_fixes(len(images))):
            with autocast(trained.device, trained.config.train.precision):
                inputs = pre.input(pre.to_device(torch.from_numpy(np.require(images, requirements="W"))))
                logits = averaged_logits(trained.model, inputs, trained.config.eval.views)
            return logits.softmax(dim=1).cpu()

    def decode(self, path: str | Path) -> NDArray[np.uint8]:
        """Decode an image file to [S, S, 3] uint8, as in training. Raises what Pillow raises."""
        return decode(path, self.trained.description.image_size)

    def __call__(self, paths: Sequence[str | Path]) -> list[Prediction]:
        """Return one Prediction per path, computed in one batch; unreadable images have a `problem`."""
        names = [str(path) for path in paths]
        with ThreadPoolExecutor(self.threads) as pool:  # Pillow decodes outside the interpreter lock
            decoded = list(pool.map(self._decoded, names))
        images = [image for image in decoded if not isinstance(image, str)]
        best = self.probabilities(np.stack(images)).topk(self.top) if images else None
        rows = iter(zip(best.values.tolist(), best.indices.tolist(), strict=True) if best else ())
        return [
            Prediction(name, problem=image) if isinstance(image, str) else self._prediction(name, *next(rows))
            for name, image in zip(names, decoded, strict=True)
        ]

    def _decoded(self, path: str) -> NDArray[np.uint8] | str:
        try:
            return self.decode(path)
        except Exception as error:  # Pillow raises many kinds on malformed files
            return f"{type(error).__name__}: {error}"

    def _prediction(self, path: str, values: list[float], indices: list[int]) -> Prediction:
        classes = self.trained.description.classes
        return Prediction(path, tuple(classes[i] for i in indices), tuple(values))


def in_order(predictor: Predictor, paths: Sequence[str], batch_size: int, world: World) -> Iterator[Prediction]:
    """Yield the predictions of all paths, in order, on every rank; the ranks compute batches in turn.

    A collective: all ranks must exhaust it.
    """
    own = dict(evaluation_batches(len(paths), batch_size, world.rank, world.size))
    batches = -(-len(paths) // batch_size)
    for first in range(0, batches, world.size):
        rows = own.get(first + world.rank, range(0))
        for part in gather_objects(predictor([paths[row] for row in rows])):
            yield from part
