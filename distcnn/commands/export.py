"""`distcnn export MODEL --format …`: a trained model for other programs, with its preprocessing, verified."""

from distcnn.commands.parser import Handler, Options, Parser, add_model, add_views, positive_int
from distcnn.inference.export import FORMATS

EPILOG = """examples:
  distcnn export runs/digits --format onnx
  distcnn export runs/cifar10_cnn/checkpoints/best.pt --format onnx torch-export --output out/
  distcnn export model.safetensors --format torchscript --images photos/

The graph takes any number n of uint8 images [n, S, S, 3], upright, resized and cropped to the model's size (as `distcnn
predict` does and the model card describes), and gives float32 probabilities [n, classes]. It includes normalisation and
the run's test-time augmentation, and computes in float32. Each file is loaded again and compared with PyTorch's own
result on real images: the run's test images, or --images.
"""


def export(parser: Parser) -> Handler:
    """Write a model as ONNX, torch.export, TorchScript or safetensors."""
    parser.epilog, add = EPILOG, parser.add_argument
    add_model(parser)
    add("--format", nargs="+", required=True, metavar="FORMAT", help=f"{', '.join(FORMATS.names())}; or your own")
    add("--output", metavar="FOLDER", help="default: export/ in the run's folder, or beside the file")
    add("--images", nargs="+", default=[], metavar="PATH", help="images to compare on; default: the run's test images")
    add("--count", type=positive_int, default=1000, metavar="N", help="compare on at most N images; default: 1000")
    add_views(parser)
    return run


def run(options: Options) -> None:
    """Export the model. Raises InputError, or DistcnnError if an export differs from it."""
    from distcnn.inference.export.export import Request, export_model

    export_model(Request(options.model, options.format, options.output, options.images, options.count, options.views))
