"""TensorBoard: the run's tensorboard/ folder. `tensorboard --logdir runs` shows all of them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distcnn.config.schema import TrackingConfig
from distcnn.registry import Problem
from distcnn.runs.records import Record
from distcnn.text import missing
from distcnn.tracking.threaded import End

_OWN = ".distcnn"  # how the names of event files end


def problems(config: TrackingConfig) -> list[Problem]:
    """What is wrong with the request."""
    if config.tensorboard and (needs := missing("tensorboard", "tensorboard")):
        return [(("tracking.tensorboard",), needs)]
    return []


class TensorBoardRun:
    """One run's event file. A resumed run writes a new one, from its first step on, in the place of the older ones.

    Those may lack steps before the checkpoint, and hold some after it.
    """

    def __init__(self, folder: Path, config: dict[str, Any], start_step: int):
        from torch.utils.tensorboard import SummaryWriter  # late: it takes a second

        logs = folder / "tensorboard"
        self.older = [*logs.glob(f"events.out.tfevents.*{_OWN}")]  # not what a user's own writer has put there
        # A TensorBoard that is showing the older ones forgets all of their steps at this mark.
        purge = 0 if self.older else None
        self.writer: Any = SummaryWriter(str(logs), purge_step=purge, filename_suffix=_OWN)
        self.writer.add_text("config", f"```\n{json.dumps(config, indent=1)}\n```", start_step)
        self.step = start_step

    def refill(self, history: Iterable[tuple[int, dict[str, float]]]) -> None:
        """All of it, into the new file; then the older ones go."""
        for step, values in history:
            self.log(values, step)
        self.writer.flush()
        for path in self.older:
            path.unlink(missing_ok=True)

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
