"""safetensors: the weights, and in the metadata what `distcnn.load_model` needs to use them."""

from dataclasses import asdict
from pathlib import Path

from distcnn.checkpoint.resume import save_weights
from distcnn.config.settings import to_dict
from distcnn.inference.export.base import Exported, Format
from distcnn.inference.model import Trained, load_model
from distcnn.inference.predictor import Predictor


class Safetensors(Format):
    """The file that a training writes at its end, of any checkpoint."""

    file = "model.safetensors"

    @staticmethod
    def write(trained: Trained, path: Path) -> None:
        """Write weights and description."""
        save_weights(path, trained.model, {
            "config": to_dict(trained.config), "classes": list(trained.classes), "image_size": trained.image_size,
            "normalize": asdict(trained.normalize), "step": trained.step, "epoch": trained.epoch,
        })  # fmt: skip

    @staticmethod
    def load(path: Path) -> Exported:
        """Load it by `load_model`, on the CPU."""
        return Predictor(load_model(path, {"train.device": "cpu"})).probabilities
