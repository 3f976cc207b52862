"""Predict many image files, on one rank or divided among several."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from distcnn.distributed.collectives import check_same
from distcnn.distributed.cores import cores
from distcnn.distributed.device import backend_of
from distcnn.distributed.memory import first_out_of_memory_of_all_ranks
from distcnn.distributed.rendezvous import process_group
from distcnn.distributed.world import World
from distcnn.inference.model import load_model
from distcnn.inference.output import open_output
from distcnn.inference.predictor import Predictor, in_order
from distcnn.text import printable


@dataclass(frozen=True)
class Request:
    """What to predict, and how to write it."""

    model: str  # a run folder, a checkpoint, or a model.safetensors
    overrides: dict[str, Any]  # settings by their dotted keys
    output: Path | None  # None: stdout
    format: str  # a key of WRITERS
    top: int  # classes per image
    batch_size: int  # images per forward


def predict_files(request: Request, paths: Sequence[str], world: World) -> list[str]:
    """Write the predictions of all files, in order, on rank 0; print the names of unreadable ones, and return them.

    A collective. Raises InputError if there is no such model, and DistcnnError if the output cannot be written.
    """
    trained = load_model(request.model, request.overrides, world)
    predictor = Predictor(trained, top=request.top, threads=max(1, cores() // world.local_size))
    unreadable = list[str]()
    device, backend = trained.device, backend_of(trained.config, trained.device)
    console = Console(stderr=True, quiet=not world.is_main)
    with (
        process_group(world, device=device, backend=backend, timeout_s=trained.config.train.timeout) as store,
        first_out_of_memory_of_all_ranks(store),
        open_output(request.output if world.is_main else Path(os.devnull), request.format, predictor.top) as write,
    ):
        names = "\0".join(paths).encode(errors="surrogateescape")
        check_same({"the list of images": sha256(names).hexdigest()[:12],
                    "the model's step": trained.description.step})  # fmt: skip
        found = in_order(predictor, paths, request.batch_size, world)
        bar = track(found, "predicting", len(paths), console=console, transient=True, disable=not console.is_terminal)
        for prediction in bar:
            if not prediction.problem:
                write(prediction)
                continue
            unreadable.append(prediction.path)
            message = f"{printable(prediction.path)}: not readable as an image ({printable(prediction.problem)})"
            console.print(message, markup=False, emoji=False, highlight=False, soft_wrap=True)
    return unreadable
