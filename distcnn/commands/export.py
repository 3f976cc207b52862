"""`distcnn export MODEL --format …`: a trained model for other programs, its preprocessing inside, and verified."""

from distcnn.commands.parser import Handler, Options, Parser, add_model, add_views, positive_int
from distcnn.inference.export import FORMATS

EPILOG = """examples:
  distcnn export runs/digits --format onnx
  distcnn export runs/cifar10_cnn/checkpoints/best.pt --format onnx torch-export --output out/
  distcnn export model.safetensors --format torchscript --images photos/

The graph takes uint8 images [n, S, S, 3], upright, resized and cropped to the model's size (`distcnn predict` does
that, and the model card says how), of any n, and gives float32 probabilities [n, classes]; normalisation and the run's
test-time views are inside. It is computed in float32. What was written is loaded again and compared with PyTorch's own
result on real images: the run's test images, or --images.
"""


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
    """Export as asked. Raises InputError, or DistcnnError where what was written differs from the model."""
    from distcnn.inference.export.export import Request, export_model

    export_model(Request(options.model, options.format, options.output, options.images, options.count, options.views))
