"""Export a model: write each format, load it again, compare it with the model, and write the model card."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distcnn.errors import InputError
from distcnn.files import atomic_file
from distcnn.inference.card import card
from distcnn.inference.export.base import chosen_formats
from distcnn.inference.export.verify import check_difference, given_images, probabilities, run_images
from distcnn.inference.model import load_model
from distcnn.inference.predictor import Predictor
from distcnn.text import plural

_DEPLOYED = {"train.device": "cpu", "train.precision": "fp32", "model.channels_last": False, "model.compile": False}


@dataclass(frozen=True)
class Request:
    """What to export, and how to verify it."""

    model: str  # a run folder, a checkpoint, or a model.safetensors
    formats: Sequence[str]
    output: str | None = None  # a folder; None: export/ beside the model
    images: Sequence[str] = ()  # to compare on; empty: the run's test images
    count: int = 1000  # images to compare on, at most
    views: str | None = None  # test-time augmentation; None: the run's


def export_model(request: Request) -> None:
    """Export, verify, write the card, print the differences. Raises InputError, or DistcnnError if one is too large."""
    formats = chosen_formats(request.formats)
    trained = load_model(request.model, _DEPLOYED | ({"eval.views": request.views} if request.views else {}))
    if request.images:
        images, source = given_images(trained, request.images, request.count), ", ".join(request.images)
    else:
        images, source = run_images(trained, request.count)
    given = Path(request.model)
    folder = Path(request.output) if request.output else (given if given.is_dir() else given.parent) / "export"
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
            aside.write_text(card(trained, request.model, found, len(images)), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--output {folder}: {error.strerror or error}; give a folder that can be written") from error
    print(f"{folder / 'README.md'}: the model card")
