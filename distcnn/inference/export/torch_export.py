"""torch.export: the graph for PyTorch 2 programs, which load it or compile it ahead of time."""

from pathlib import Path

import torch

from distcnn.inference.export.base import Exported, Format, deployed
from distcnn.inference.model import Trained


class TorchExport(Format):
    """A .pt2 file, for any number of images."""

    file = "model.pt2"

    @staticmethod
    def write(trained: Trained, path: Path) -> None:
        """Write the exported program."""
        network, example = deployed(trained)
        program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("n")},))
        with path.open("wb") as file:  # given a path, it insists on the suffix .pt2
            torch.export.save(program, file)

    @staticmethod
    def load(path: Path) -> Exported:
        """Load the file as a module."""
        with path.open("rb") as file:
            module = torch.export.load(file).module()
        return lambda images: module(torch.from_numpy(images))
