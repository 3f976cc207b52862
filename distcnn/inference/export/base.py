"""The interface of export formats, and the network that they write."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distcnn.errors import InputError
from distcnn.inference.export import FORMATS
from distcnn.inference.model import Trained
from distcnn.training.views import averaged_logits

Exported = Callable[[NDArray[np.uint8]], Tensor]  # [n, S, S, 3] uint8 → [n, classes] float32 probabilities


class Format(ABC):
    """One file format. A new one is a class in its own file, and a line in `FORMATS`."""

    file: ClassVar[str]  # the file's name, such as model.onnx

    @staticmethod
    def missing() -> str:
        """Return which packages have to be installed first; "" if none."""
        return ""

    @staticmethod
    @abstractmethod
    def write(trained: Trained, path: Path) -> None:
        """Write the model to `path`, which may have any suffix. Raises OSError."""

    @staticmethod
    @abstractmethod
    def load(path: Path) -> Exported:
        """Load a file that `write` has written, as its users would."""


class Deployed(nn.Module):
    """[n, S, S, 3] uint8 → [n, classes] float32 probabilities: preprocessing, network, views, softmax in one graph."""

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.model = trained.model
        self._preprocess, self._views = trained.preprocess(), trained.config.eval.views

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities of a batch."""
        return averaged_logits(self.model, self._preprocess.input(images), self._views).softmax(dim=1)


def deployed(trained: Trained) -> tuple[nn.Module, Tensor]:
    """Return the network to export, in eval mode, and a batch of two black images to trace it with."""
    size = trained.description.image_size
    return Deployed(trained).eval(), torch.zeros(2, size, size, 3, dtype=torch.uint8)


def chosen_formats(names: Iterable[str]) -> list[type[Format]]:
    """Return the formats by name, each once. Raises InputError with all that are unknown or lack a package."""
    found, problems = list[type[Format]](), list[str]()
    for name in dict.fromkeys(names):
        try:
            part = FORMATS.load(name)
        except InputError as error:
            problems.append(f"--format {name}: {error}")
            continue
        if not (isinstance(part, type) and issubclass(part, Format)):
            problems.append(f"--format {name}: should be a subclass of {Format.__module__}.Format")
        elif needs := part.missing():
            problems.append(f"--format {name}: {needs}")
        else:
            found.append(part)
    if problems:
        raise InputError(problems)
    return found
