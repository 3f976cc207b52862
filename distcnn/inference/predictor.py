"""Classes and probabilities of images, with the preprocessing that the model was trained with."""

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
from distcnn.distributed.memory import explain_out_of_memory, prediction_cures
from distcnn.distributed.world import World
from distcnn.engine.master_weights import autocast
from distcnn.inference.model import Trained, load_model
from distcnn.training.views import averaged_logits


@dataclass(frozen=True)
class Prediction:
    """Of one image."""

    path: str
    classes: tuple[str, ...] = ()  # the best ones, best first; none if the image could not be read
    probabilities: tuple[float, ...] = ()  # theirs
    problem: str = ""  # why it could not be read


class Predictor:
    """A trained model that takes image files, or arrays that were decoded already.

    >>> predictor = Predictor("runs/digits", top=2)  # doctest: +SKIP
    >>> predictor(["seven.png"])[0].classes  # doctest: +SKIP
    ('7', '9')
    """

    def __init__(self, model: Trained | str | Path, *, top: int = 5, threads: int | None = None):
        """Give the `top` classes of each image; decode in `threads`. Raises InputError where there is no such model."""
        self.trained = model if isinstance(model, Trained) else load_model(model)
        self.top = min(top, len(self.trained.description.classes))
        self.threads = threads or cores()
        self.preprocess = self.trained.preprocess()

    @torch.inference_mode()
    def probabilities(self, images: NDArray[np.uint8]) -> Tensor:
        """[n, S, S, 3] uint8, as `decode` gives them → [n, classes] float32 on the CPU; over the run's views.

        Raises OutOfMemoryError (of distcnn.errors) for more images than the device can take at once.
        """
        trained, pre = self.trained, self.preprocess
        with explain_out_of_memory(trained.device, lambda: prediction_cures(len(images))):
            with autocast(trained.device, trained.config.train.precision):
                inputs = pre.input(pre.to_device(torch.from_numpy(np.require(images, requirements="W"))))
                logits = averaged_logits(trained.model, inputs, trained.config.eval.views)
            return logits.softmax(dim=1).cpu()

    def decode(self, path: str | Path) -> NDArray[np.uint8]:
        """Any image that Pillow reads → [S, S, 3] uint8, as in training. Raises what Pillow raises."""
        return decode(path, self.trained.description.image_size)

    def __call__(self, paths: Sequence[str | Path]) -> list[Prediction]:
        """One Prediction for each path, in one batch; unreadable ones say so."""
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
        except Exception as error:  # whatever Pillow raises on hostile bytes
            return f"{type(error).__name__}: {error}"

    def _prediction(self, path: str, values: list[float], indices: list[int]) -> Prediction:
        classes = self.trained.description.classes
        return Prediction(path, tuple(classes[i] for i in indices), tuple(values))


def in_order(predictor: Predictor, paths: Sequence[str], batch_size: int, world: World) -> Iterator[Prediction]:
    """Predictions of all paths, on every rank, in the order of the paths; the ranks take batches in turn.

    A collective: all ranks go through it to its end.
    """
    own = dict(evaluation_batches(len(paths), batch_size, world.rank, world.size))
    batches = -(-len(paths) // batch_size)
    for first in range(0, batches, world.size):
        rows = own.get(first + world.rank, range(0))
        for part in gather_objects(predictor([paths[row] for row in rows])):
            yield from part
