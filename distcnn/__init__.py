"""Distributed training of CNN image classifiers in PyTorch.

The names below are the Python API, imported lazily so that `import distcnn` is fast.

>>> import distcnn, numpy
>>> result = distcnn.train({
...     "data.source": "synthetic", "data.image_size": 8, "model.name": "resnet9", "model.args": {"width": 4},
...     "train.duration": "1ep", "tracking.wandb": "disabled", "tracking.console": False,
... })
>>> evaluation = distcnn.evaluate(result.folder)
>>> evaluation["total"], evaluation["correct"] == result.evaluation.correct
(512, True)
>>> images = numpy.zeros((5, 8, 8, 3), numpy.uint8)  # as Predictor.decode returns them, stacked
>>> distcnn.Predictor(result.folder).probabilities(images).shape
torch.Size([5, 10])
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from distcnn.api import evaluate, train
    from distcnn.config.schema import Config
    from distcnn.errors import DistcnnError, InputError
    from distcnn.inference.model import Trained, load_model
    from distcnn.inference.predictor import Prediction, Predictor
    from distcnn.training.train import Result

__all__ = [
    "Config",
    "DistcnnError",
    "InputError",
    "Prediction",
    "Predictor",
    "Result",
    "Trained",
    "evaluate",
    "load_model",
    "train",
]  # fmt: skip

_HOMES = {
    "train": "api", "evaluate": "api", "Config": "config.schema", "InputError": "errors", "DistcnnError": "errors",
    "Prediction": "inference.predictor", "Predictor": "inference.predictor",
    "Result": "training.train", "Trained": "inference.model", "load_model": "inference.model",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'distcnn' has no attribute {name!r}")
    return getattr(importlib.import_module(f"distcnn.{_HOMES[name]}"), name)
