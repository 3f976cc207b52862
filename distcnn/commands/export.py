"""`distcnn export MODEL --format …`: a trained model for other programs, its preprocessing inside, and verified."""

import argparse
from pathlib import Path

from distcnn.commands.command import command_parser
from distcnn.errors import InputError
from distcnn.files import atomic_file
from distcnn.inference.export import FORMATS
from distcnn.text import plural

EPILOG = """examples:
  distcnn export runs/digits --format onnx
  distcnn export runs/cifar10_cnn/checkpoints/best.pt --format onnx torch-export --output out/
  distcnn export model.safetensors --format torchscript --images photos/

The graph takes uint8 images [n, S, S, 3], upright, resized and cropped to the model's size (`distcnn predict` does
that, and the model card says how), of any n, and gives float32 probabilities [n, classes]; normalisation and the run's
test-time views are inside. It is computed in float32. What was written is loaded again and compared with PyTorch's own
result on real images: the run's test images, or --images.
"""
_DEPLOYED = {"train.device": "cpu", "train.precision": "fp32", "model.channels_last": False, "model.compile": False}


def run(arguments: list[str]) -> None:
    """Export, verify, write the card, and print what was found. Raises InputError, or DistcnnError where it differs."""
    options = _parser().parse_args(arguments)
    if options.count < 1:
        raise InputError(f"--count {options.count}: should be 1 or more")
    from distcnn.inference.card import card
    from distcnn.inference.export.base import chosen_formats
    from distcnn.inference.export.verify import check_difference, given_images, probabilities, run_images
    from distcnn.inference.model import load_model
    from distcnn.inference.predictor import Predictor

    formats = chosen_formats(options.format)
    trained = load_model(options.model, _DEPLOYED | ({"eval.views": options.views} if options.views else {}))
    if options.images:
        images, source = given_images(trained, options.images, options.count), ", ".join(options.images)
    else:
        images, source = run_images(trained, options.count)
    given = Path(options.model)
    folder = Path(options.output) if options.output else (given if given.is_dir() else given.parent) / "export"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        expected = probabilities(Predictor(trained).probabilities, images)
        found = {}
        for one in formats:
            with atomic_file(folder / one.file) as aside:
                one.write(trained, aside)
                found[one.file] = check_difference(probabilities(one.load(aside), images), expected, one.file)
            difference = f"largest difference {found[one.file]:.2g} on {plural(len(images), 'image')} of {source}"
            print(f"{folder / one.file}: {difference}")
        with atomic_file(folder / "README.md") as aside:
            aside.write_text(card(trained, options.model, found, len(images)), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {folder}: {error.strerror or error}; give a folder that can be written") from error
    print(f"{folder / 'README.md'}: the model card")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("export", "MODEL --format FORMAT [FORMAT ...] [options]", __doc__, EPILOG)
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run folder, a checkpoint, or a model.safetensors")
    add("--format", nargs="+", required=True, metavar="FORMAT", help=f"{', '.join(FORMATS.names())}; or your own")
    add("--output", metavar="FOLDER", help="default: export/ in the run's folder, or beside the file")
    add("--images", nargs="+", default=[], metavar="PATH", help="to compare on; default: the run's test images")
    add("--count", type=int, default=1000, metavar="N", help="at most this many of them; default: 1000")
    add("--views", choices=("one", "mirror", "crops"), help="test-time augmentation inside; default: the run's")
    return parser
