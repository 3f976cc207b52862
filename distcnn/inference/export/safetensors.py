"""safetensors: the weights, with the description that `distcnn.load_model` needs in the metadata."""

from dataclasses import replace
from pathlib import Path

from distcnn.checkpoint.weights import save_safetensors
from distcnn.config.settings import to_dict
from distcnn.inference.export.base import Exported, Format
from distcnn.inference.model import Trained, load_model
from distcnn.inference.predictor import Predictor


class Safetensors(Format):
    """The file that a training writes at its end, here for any checkpoint."""

    file = "model.safetensors"

    @staticmethod
    def write(trained: Trained, path: Path) -> None:
        """Write weights and description."""
        description = replace(trained.description, config=to_dict(trained.config))
        save_safetensors(path, trained.model.state_dict(), description)

    @staticmethod
    def load(path: Path) -> Exported:
        """Load the file by `load_model`, on the CPU."""
        return Predictor(load_model(path, {"train.device": "cpu"})).probabilities
