"""`distcnn train CONFIG`: train and evaluate a run."""

import os
from pathlib import Path

from distcnn.commands.parser import Handler, Options, Parser
from distcnn.config.settings import load_settings
from distcnn.distributed.exit import end_at_once
from distcnn.distributed.signals import catching_signals
from distcnn.distributed.world import world_from


def train(parser: Parser) -> Handler:
    """Train and evaluate a run from a YAML config."""
    parser.add_argument("config", metavar="CONFIG.yaml", type=Path, help="the run")
    parser.add_argument("-q", "--quiet", action="store_true", help="same as --tracking.console false")
    parser.add_settings(list_keys=True)
    parser.set_defaults(problems=[])
    return run


def run(options: Options) -> None:
    """Train, as one of the launcher's ranks. Raises DistcnnError."""
    with catching_signals(end_at_once) as signal:
        world = world_from(os.environ)
        settings = load_settings(options.config, options.settings, options.problems)
        if options.quiet:
            settings.update({"tracking.console": False})
        from distcnn.training.train import train_from_settings

        train_from_settings(settings, world, signal)
