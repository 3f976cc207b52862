"""Evaluate a trained model on the test images of its run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distcnn.config.schema import Config
from distcnn.config.settings import Overrides
from distcnn.data.loaders.evaluation import EvaluationLoader
from distcnn.data.sources import load as sources
from distcnn.data.sources.load import with_classes
from distcnn.distributed.device import backend_of
from distcnn.distributed.memory import evaluation_fixes, explain_out_of_memory, first_out_of_memory_of_all_ranks
from distcnn.distributed.rendezvous import process_group
from distcnn.distributed.watch import Watch
from distcnn.distributed.world import World
from distcnn.errors import InputError
from distcnn.inference.model import load_model
from distcnn.registry import Problem
from distcnn.training import metrics
from distcnn.training.evaluate import evaluate_on
from distcnn.training.metrics.build import build_metrics


def evaluate_checkpoint(path: Path, overrides: Overrides, world: World) -> dict[str, Any]:
    """Evaluate a checkpoint, or a run folder's newest, on its test images; `overrides` such as `data.root`.

    Returns an eval line as in metrics.jsonl; on every rank alike. Raises InputError.
    """
    trained = load_model(path, overrides, world, _problems)
    config, described = trained.config, trained.description
    size, further = described.image_size, build_metrics(config.eval, len(described.classes), trained.device)
    data = with_classes(sources.load(config.data, "test"), described.classes)
    if data.images.shape[1] != size:
        raise InputError(f"{path}: trained on {size}×{size} images, the test images are {data.images.shape[1]} wide")
    backend = backend_of(config, trained.device)
    with (
        process_group(world, device=trained.device, backend=backend, timeout_s=config.train.timeout) as store,
        first_out_of_memory_of_all_ranks(store),
        explain_out_of_memory(trained.device, lambda: evaluation_fixes(config.eval.batch_size)),
    ):
        # Nothing is kept on the device: it is one pass.
        test = EvaluationLoader(data, config.eval.batch_size, trained.preprocess(), world.rank, world.size, keep=False)
        result = evaluate_on(trained.model, test, config, Watch(trained.device), further)
    return {"kind": "eval", "split": result.split, "step": described.step, "epoch": described.epoch, **result.record()}


def _problems(config: Config) -> Iterator[Problem]:
    yield from sources.problems(config)
    yield from metrics.problems(config)
