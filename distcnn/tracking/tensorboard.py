"""TensorBoard: the run's tensorboard/ folder. `tensorboard --logdir runs` shows all of them."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distcnn.config import TrackingConfig
from distcnn.conflicts import Problem
from distcnn.records import Record
from distcnn.tracking.threaded import End


def problems(config: TrackingConfig) -> list[Problem]:
    """What is wrong with the request."""
    if config.tensorboard and find_spec("tensorboard") is None:
        return [(("tracking.tensorboard",), "needs tensorboard: pip install 'distcnn[tensorboard]'")]
    return []


class TensorBoardRun:
    """One run's event files; a resumed one hides what an earlier one wrote of later steps."""

    def __init__(self, folder: Path, config: dict[str, Any], start_step: int):
        from torch.utils.tensorboard import SummaryWriter  # late: it takes a second

        purge = start_step + 1 if start_step else None
        self.writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
        self.writer.add_text("config", f"```\n{json.dumps(config, indent=1)}\n```", start_step)
        self.step = start_step

    def log(self, values: dict[str, float], step: int) -> None:
        """In double precision; TensorBoard's default keeps seven digits."""
        self.step = step
        for name, value in values.items():
            self.writer.add_scalar(name, value, step, new_style=True, double_precision=True)

    def finish(self, status: str, summary: Record, end: End) -> None:  # noqa: ARG002
        """With the mistakes as images."""
        for place, (image, true, predicted, probability, _) in enumerate(end.mistakes()[:16]):
            name = f"mistakes/{place:02}: {true}, taken for {predicted} ({probability:.1%})"
            self.writer.add_image(name, image, self.step, dataformats="HWC")
        self.writer.close()
