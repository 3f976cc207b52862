"""`distcnn predict MODEL PATH…`: classify images."""

import os
from pathlib import Path

from distcnn.commands.parser import Handler, Options, Parser, add_model, add_views, positive_int
from distcnn.distributed.world import world_from
from distcnn.errors import DistcnnError, InputError
from distcnn.inference.output import WRITERS

EPILOG = """examples:
  distcnn predict runs/digits photo.png
  distcnn predict runs/cifar10_cnn/checkpoints/best.pt photos/ 'more/*.jpg' --top 3 --format csv --output found.csv
  distcnn predict model.safetensors photos/ --format jsonl | jq .
  torchrun --standalone --nproc_per_node=4 -m distcnn predict runs/digits photos/ --format jsonl --output found.jsonl

Images are turned upright, resized, cropped and normalised as in the model's training, with its precision and test-time
augmentation. Unreadable images are named and left out; the exit code is then 1.
"""


def predict(parser: Parser) -> Handler:
    """Predict the most probable classes of images."""
    parser.epilog, add = EPILOG, parser.add_argument
    add_model(parser)
    add("paths", metavar="PATH", nargs="+", help="images, folders of images, or patterns such as 'photos/*.jpg'")
    add("--top", type=positive_int, default=5, metavar="K", help="the K most probable classes; default: 5")
    add("--format", choices=tuple(WRITERS), default="table", help="output format; default: table")
    add("--output", metavar="FILE", help="write to FILE instead of stdout")
    add("--batch-size", type=positive_int, default=256, metavar="N", help="images per forward; default: 256")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda where there is one")
    add_views(parser)
    parser.set_defaults(problems=[])
    return run


def run(options: Options) -> None:
    """Predict and, on rank 0, print or write the classes. Raises InputError, and DistcnnError for unreadable images."""
    problems: list[str] = options.problems
    output = Path(options.output) if options.output else None
    if output and not output.absolute().parent.is_dir():
        problems.append(f"--output {output}: no such folder; create it first")
    from distcnn.inference.images import find_images

    paths = find_images(options.paths, problems)
    if problems:
        raise InputError(problems)
    from distcnn.inference.predict import Request, predict_files

    overrides = {"train.device": options.device, **({"eval.views": options.views} if options.views else {})}
    request = Request(options.model, overrides, output, options.format, options.top, options.batch_size)
    unreadable = predict_files(request, paths, world_from(os.environ))
    if unreadable:
        raise DistcnnError(f"{len(unreadable)} of {len(paths)} files could not be read as images, and were left out")
