"""`distcnn evaluate RUN`: evaluate a trained model on its run's test images."""

import argparse
import os
from pathlib import Path

from distcnn.commands.parser import Handler, Options, Parser
from distcnn.config.settings import Settings
from distcnn.distributed.world import world_from
from distcnn.runs.records import further_metrics, to_json


def evaluate(parser: Parser) -> Handler:
    """Evaluate a run's newest checkpoint, or a given one."""
    parser.add_argument(
        "model", metavar="RUN_OR_CHECKPOINT", type=_model, help="a run folder, a checkpoint, or a model.safetensors"
    )
    parser.add_settings(list_keys=True)
    return run


def _model(text: str) -> Path:
    if not Path(text).exists():
        raise argparse.ArgumentTypeError("no such run folder or checkpoint")
    return Path(text)


def run(options: Options) -> None:
    """Evaluate and, on rank 0, print the accuracies and then an eval record as JSON. Raises DistcnnError."""
    world = world_from(os.environ)
    from distcnn.inference.evaluate import evaluate_checkpoint

    record = evaluate_checkpoint(options.model, Settings().read_arguments(options.settings), world)
    if world.is_main:
        for name, accuracy in record["per_class"].items():
            print(f"{name:>20}  {'no images' if accuracy is None else f'{accuracy:.2%}'}")
        print(f"{'all':>20}  {record['accuracy']:.2%}  ({record['correct']} of {record['total']})")
        for name, value in further_metrics(record).items():
            print(f"{name:>20}  {value:.4f}")
        print(to_json(record), flush=True)
