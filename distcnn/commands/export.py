"""`distcnn export MODEL --format …`: a trained model for other programs, its preprocessing inside, and verified."""

from pathlib import Path

from distcnn.commands.parser import Handler, Options, Parser, add_model, add_views, positive_int
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


def export(parser: Parser) -> Handler:
    """Write a model as ONNX, torch.export, TorchScript or safetensors."""
    parser.epilog, add = EPILOG, parser.add_argument
    add_model(parser)
    add("--format", nargs="+", required=True, metavar="FORMAT", help=f"{', '.join(FORMATS.names())}; or your own")
    add("--output", metavar="FOLDER", help="default: export/ in the run's folder, or beside the file")
    add("--images", nargs="+", default=[], metavar="PATH", help="to compare on; default: the run's test images")
    add("--count", type=positive_int, default=1000, metavar="N", help="at most N of them; default: 1000")
    add_views(parser)
    return run


def run(options: Options) -> None:
    """Export, verify, write the card, and print what was found. Raises InputError, or DistcnnError where it differs."""
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
