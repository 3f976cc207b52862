"""ONNX, by PyTorch's exporter: one file that onnxruntime and others run without PyTorch."""

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch

from distcnn.inference.export.base import Exported, Format, deployed
from distcnn.inference.model import Trained
from distcnn.text import missing


class Onnx(Format):
    """A graph with input `images` and output `probabilities`, for any number of images."""

    file = "model.onnx"

    @staticmethod
    def missing() -> str:
        """Return which packages have to be installed first; "" if none."""
        return missing("export", "onnx", "onnxscript", "onnxruntime")

    @staticmethod
    def write(trained: Trained, path: Path) -> None:
        """Write the graph and its weights as one file."""
        network, example = deployed(trained)
        # The exporter prints and logs each of its stages.
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network, (example,), dynamo=True, input_names=["images"], output_names=["probabilities"],
                dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False,
            )  # fmt: skip
            assert program is not None
            program.save(str(path), external_data=False)

    @staticmethod
    def load(path: Path) -> Exported:
        """Load the file into onnxruntime, on the CPU."""
        import onnxruntime  # optional

        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run(None, {"images": images})[0])
