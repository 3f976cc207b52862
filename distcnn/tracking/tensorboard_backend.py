"""TensorBoard: the run's tensorboard/ folder. `tensorboard --logdir runs` shows all of them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from distcnn.config.schema import Config
from distcnn.registry import Problem, checked_by
from distcnn.runs.records import Record
from distcnn.text import missing
from distcnn.tracking.backend import TrackedRun

_OWN = ".distcnn"  # how the names of event files end


def _problems(config: Config, args: Mapping[str, Any]) -> Iterator[Problem]:  # noqa: ARG001
    if needs := missing("tensorboard", "tensorboard"):
        yield ("tracking.backends",), needs


@checked_by(_problems)
class TensorBoardBackend:
    """One run's event file. A resumed run writes a new one, from its first step on, in the place of the older ones.

    Those may lack steps before the checkpoint, and hold some after it.
    """

    def __init__(self, run: TrackedRun):
        from torch.utils.tensorboard import SummaryWriter  # late: it takes a second

        logs = run.folder / "tensorboard"
        self.older = [*logs.glob(f"events.out.tfevents.*{_OWN}")]  # not what a user's own writer has put there
        # A TensorBoard that is showing the older ones forgets all of their steps at this mark.
        purge = 0 if self.older else None
        self.writer: Any = SummaryWriter(str(logs), purge_step=purge, filename_suffix=_OWN)
        self.writer.add_text("config", f"```\n{json.dumps(run.settings, indent=1)}\n```", run.start_step)
        self.run, self.step = run, run.start_step

    def refill(self, history: Iterable[tuple[int, dict[str, float]]]) -> None:
        """Log all of it into the new file; then the older ones go."""
        for step, values in history:
            self.log(values, step)
        self.writer.flush()
        for path in self.older:
            path.unlink(missing_ok=True)

    def log(self, values: dict[str, float], step: int) -> None:
        """Add scalars in double precision; TensorBoard's default keeps seven digits."""
        self.step = step
        for name, value in values.items():
            self.writer.add_scalar(name, value, step, new_style=True, double_precision=True)

    def finish(self, status: str, summary: Record) -> None:  # noqa: ARG002
        """Add the most confident mistakes as images, and close the file."""
        for place, (image, true, predicted, probability, _) in enumerate(self.run.mistakes()[:16]):
            name = f"mistakes/{place:02}: {true}, taken for {predicted} ({probability:.1%})"
            self.writer.add_image(name, image, self.step, dataformats="HWC")
        self.writer.close()
