"""`distcnn export MODEL --format …`: a trained model for other programs, its preprocessing inside, and verified."""

import argparse
import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distcnn.commands.command import command_parser
from distcnn.errors import DistcnnError, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from distcnn.inference.model import Trained

    Run = Callable[[NDArray[np.uint8]], Tensor]  # [n, S, S, 3] uint8 → [n, classes] float32 probabilities

EPILOG = """examples:
  distcnn export runs/digits --format onnx
  distcnn export runs/cifar10_cnn/checkpoints/best.pt --format onnx torch-export --output out/
  distcnn export model.safetensors --format torchscript --images photos/

The graph takes uint8 images [n, S, S, 3], upright, resized and cropped to the model's size (`distcnn predict` does
that, and the model card says how), of any n, and gives float32 probabilities [n, classes]; normalisation and the run's
test-time views are inside. It is computed in float32. What was written is loaded again and compared with PyTorch's own
result on real images: the run's test images, or --images.
"""
TOLERANCE = 1e-4
_CUTS = (1, 7)  # the first batches' sizes; the rest comes in large ones: the batch's size must not be fixed
_BATCH = 250


def run(arguments: list[str]) -> None:
    """Export, verify, write the card, and print what was found. Raises InputError, or DistcnnError where it differs."""
    options = _parser().parse_args(arguments)
    formats = list(dict.fromkeys(options.format))
    if missing := [f"--format {kind}: needs {needs}" for kind in formats if (needs := _missing(kind))]:
        raise InputError(missing)
    if options.count < 1:
        raise InputError(f"--count {options.count}: should be 1 or more")
    from distcnn.files import whole_file
    from distcnn.inference.card import card
    from distcnn.inference.model import load_model

    fixed = {"train.device": "cpu", "train.precision": "fp32", "model.channels_last": False, "model.compile": False}
    views = {"eval.views": options.views} if options.views else {}
    trained = load_model(options.model, {**fixed, **views})
    images, source = _images(trained, options.images, options.count)
    given = Path(options.model)
    folder = Path(options.output) if options.output else (given if given.is_dir() else given.parent) / "export"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        expected = _eager(trained, images)
        found = {}
        for kind in formats:
            name, write, load = FORMATS[kind]
            with whole_file(folder / name) as aside:
                write(trained, aside)
                found[name] = _difference(load(aside), images, expected, name)
            print(f"{folder / name}: largest difference {found[name]:.2g} on {len(images):,} images of {source}")
        with whole_file(folder / "README.md") as aside:
            aside.write_text(card(trained, options.model, found, len(images)), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {folder}: {error.strerror or error}; give a folder that can be written") from error
    print(f"{folder / 'README.md'}: the model card")


def deployed(trained: "Trained") -> "nn.Module":
    """[n, S, S, 3] uint8 → [n, classes] float32 probabilities, in one graph."""
    from torch import nn

    from distcnn.training.views import averaged_logits

    preprocess, views = trained.preprocess(), trained.config.eval.views

    class Deployed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = trained.model

        def forward(self, images: "Tensor") -> "Tensor":
            return averaged_logits(self.model, preprocess.input(images), views).softmax(dim=1)

    return Deployed().eval()


def _example(trained: "Trained") -> "Tensor":
    import torch

    return torch.zeros(2, trained.image_size, trained.image_size, 3, dtype=torch.uint8)


def _write_onnx(trained: "Trained", path: Path) -> None:
    import torch

    # The exporter tells stdout and a logger of each of its stages.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            deployed(trained), (_example(trained),), dynamo=True, input_names=["images"],
            output_names=["probabilities"], dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False,
        )  # fmt: skip
        assert program is not None
        program.save(str(path), external_data=False)


def _write_torch_export(trained: "Trained", path: Path) -> None:
    import torch

    program = torch.export.export(deployed(trained), (_example(trained),), dynamic_shapes=({0: torch.export.Dim("n")},))
    with path.open("wb") as file:  # by its path, it would insist on the suffix .pt2
        torch.export.save(program, file)


def _write_torchscript(trained: "Trained", path: Path) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and still what many a server runs
        traced = torch.jit.trace(deployed(trained), _example(trained), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(path))


def _write_safetensors(trained: "Trained", path: Path) -> None:
    from dataclasses import asdict

    from distcnn.checkpoint.resume import save_weights
    from distcnn.config.settings import to_dict

    save_weights(path, trained.model, {
        "config": to_dict(trained.config), "classes": list(trained.classes), "image_size": trained.image_size,
        "normalize": asdict(trained.normalize), "step": trained.step, "epoch": trained.epoch,
    })  # fmt: skip


def _run_onnx(path: Path) -> "Run":
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images})[0])


def _run_torch_export(path: Path) -> "Run":
    import torch

    with path.open("rb") as file:
        module = torch.export.load(file).module()
    return lambda images: module(torch.from_numpy(images))


def _run_torchscript(path: Path) -> "Run":
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return lambda images: module(torch.from_numpy(images))


def _run_safetensors(path: Path) -> "Run":
    from distcnn.inference.model import load_model
    from distcnn.inference.predictor import Predictor

    return Predictor(load_model(path, {"train.device": "cpu"})).probabilities


FORMATS: dict[str, tuple[str, Callable[["Trained", Path], None], Callable[[Path], "Run"]]] = {
    "onnx": ("model.onnx", _write_onnx, _run_onnx),
    "torch-export": ("model.pt2", _write_torch_export, _run_torch_export),
    "torchscript": ("model.torchscript", _write_torchscript, _run_torchscript),
    "safetensors": ("model.safetensors", _write_safetensors, _run_safetensors),
}


def _missing(kind: str) -> str | None:
    from importlib.util import find_spec

    absent = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    return f"{', '.join(absent)}: pip install 'distcnn[export]'" if kind == "onnx" and absent else None


def _images(trained: "Trained", paths: Sequence[str], count: int) -> tuple["NDArray[np.uint8]", str]:
    """Real images to compare on, at most so many, and where they come from."""
    import numpy as np

    if paths:
        from distcnn.commands.predict import found_images
        from distcnn.inference.predictor import Predictor

        problems: list[str] = []
        files = found_images(paths, problems)
        if problems:
            raise InputError(problems)
        predictor = Predictor(trained)
        try:
            return np.stack([predictor.decode(file) for file in files[:count]]), ", ".join(paths)
        except Exception as error:  # whatever Pillow raises
            raise InputError(f"--images: not readable as images: {error}") from error
    from distcnn.data.sources import load as sources
    from distcnn.inference.model import is_safetensors

    config = trained.config.data
    problems = [f"{', '.join(keys)}: {message}" for keys, message in sources.problems(config)]
    if is_safetensors(trained.path):
        problems = [f"{trained.path}: does not say which images it was tested on"]
    if problems:
        raise InputError([*problems, "give real images to verify the export on: --images PATH…"])
    data = sources.load(config, "test")
    # Evenly: a folder's are sorted by class.
    rows = np.linspace(0, len(data) - 1, min(count, len(data))).astype(np.int64)
    return np.ascontiguousarray(data.images[rows]), f"{config.source}, {'hold-out' if config.holdout else 'test'}"


def _batches(images: "NDArray[np.uint8]") -> list["NDArray[np.uint8]"]:
    import numpy as np

    cuts = [*_CUTS, *range(_BATCH, len(images), _BATCH)]
    return [part for part in np.split(images, [cut for cut in cuts if cut < len(images)]) if len(part)]


def _eager(trained: "Trained", images: "NDArray[np.uint8]") -> "Tensor":
    import torch

    from distcnn.inference.predictor import Predictor

    predictor = Predictor(trained)
    return torch.cat([predictor.probabilities(part) for part in _batches(images)])


def _difference(exported: "Run", images: "NDArray[np.uint8]", expected: "Tensor", name: str) -> float:
    """The largest one between two probabilities. Raises DistcnnError where it is too large."""
    import torch

    with torch.inference_mode():
        found = torch.cat([exported(part) for part in _batches(images)])
    largest = float((found - expected).abs().max())
    if not largest <= TOLERANCE:
        raise DistcnnError(
            f"{name}: differs from PyTorch's own probabilities by {largest:.2g}, more than {TOLERANCE:g}; not kept"
        )
    return largest


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("export", "MODEL --format FORMAT [FORMAT ...] [options]", __doc__, EPILOG)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run folder, a checkpoint, or a model.safetensors")
    add("--format", nargs="+", required=True, choices=tuple(FORMATS), metavar="FORMAT", help=", ".join(FORMATS))
    add("--output", metavar="FOLDER", help="default: export/ in the run's folder, or beside the file")
    add("--images", nargs="+", default=[], metavar="PATH", help="to compare on; default: the run's test images")
    add("--count", type=int, default=1000, metavar="N", help="so many of them; default: 1000")
    add("--views", choices=("one", "mirror", "crops"), help="test-time augmentation inside; default: the run's")
    return parser
