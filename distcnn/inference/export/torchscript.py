"""TorchScript: deprecated, but still run by many servers."""

import warnings
from pathlib import Path

import torch

from distcnn.inference.export.base import Exported, Format, deployed
from distcnn.inference.model import Trained


class TorchScript(Format):
    """A traced module, for any number of images."""

    file = "model.torchscript"

    @staticmethod
    def write(trained: Trained, path: Path) -> None:
        """Write the traced network."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the deprecation
            traced = torch.jit.trace(*deployed(trained), check_trace=False)  # type: ignore[no-untyped-call]
            torch.jit.save(traced, str(path))

    @staticmethod
    def load(path: Path) -> Exported:
        """Load the file as a module."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
        return lambda images: module(torch.from_numpy(images))
