"""TensorBoard, in the run's tensorboard/ folder. `tensorboard --logdir runs` shows all runs."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from distcnn.config.schema import Config
from distcnn.registry import Problem, checked_by
from distcnn.runs.records import Record
from distcnn.text import missing
from distcnn.tracking.backend import TrackedRun

_OWN = ".distcnn"  # suffix of event files


def _problems(config: Config, args: Mapping[str, Any]) -> Iterator[Problem]:  # noqa: ARG001
    if needs := missing("tensorboard", "tensorboard"):
        yield ("tracking.backends",), needs


@checked_by(_problems)
class TensorBoardBackend:
    """One run's event file. A resumed run replaces the older ones by a new one that starts at the first step.

    The older ones may lack steps before the checkpoint and have steps after it.
    """

    def __init__(self, run: TrackedRun):
        from torch.utils.tensorboard import SummaryWriter  # late: the import takes a second

        logs = run.folder / "tensorboard"
        self.older = [*logs.glob(f"events.out.tfevents.*{_OWN}")]  # not those of the user's own writers
        # Makes a running TensorBoard discard all steps of the older files.
        purge = 0 if self.older else None
        self.writer: Any = SummaryWriter(str(logs), purge_step=purge, filename_suffix=_OWN)
        self.writer.add_text("config", f"```\n{json.dumps(run.settings, indent=1)}\n```", run.start_step)
        self.run, self.step = run, run.start_step

    def refill(self, history: Iterable[tuple[int, dict[str, float]]]) -> None:
        """Log the history to the new file, then remove the older ones."""
        for step, values in history:
            self.log(values, step)
        self.writer.flush()
        for path in self.older:
            path.unlink(missing_ok=True)

    def log(self, values: dict[str, float], step: int) -> None:
        """Log scalars in double precision; TensorBoard's default is single."""
        self.step = step
        for name, value in values.items():
            self.writer.add_scalar(name, value, step, new_style=True, double_precision=True)

    def finish(self, status: str, summary: Record) -> None:  # noqa: ARG002
        """Log the most confident errors as images, and close the file."""
        for place, (image, true, predicted, probability, _) in enumerate(self.run.mistakes()[:16]):
            name = f"mistakes/{place:02}: {true}, predicted {predicted} ({probability:.1%})"
            self.writer.add_image(name, image, self.step, dataformats="HWC")
        self.writer.close()
