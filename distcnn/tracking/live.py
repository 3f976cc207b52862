"""Live progress display on a terminal; other output, warnings included, is printed above it."""

import math
from collections.abc import Callable

import psutil
import torch
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from distcnn.config.plan import Plan
from distcnn.runs.records import Record

NARROW = 70  # columns; narrower terminals get bars without times
_SMOOTHED = 50  # steps


class LiveDisplay:
    """Progress bars of the run and the epoch, and a line of numbers; drawn four times per second by a thread."""

    def __init__(
        self, console: Console, plan: Plan, start_step: int, restarts: int, last_checkpoint: Callable[[], str]
    ):
        self.plan, self.restarts, self.last_checkpoint = plan, restarts, last_checkpoint
        columns = [TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn()]
        if console.width >= NARROW:
            columns += [TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(elapsed_when_finished=False)]
        self.progress = Progress(*columns, console=console, expand=True)
        self.run = self.progress.add_task("steps", total=plan.steps, completed=start_step)
        self.epoch = self.progress.add_task("epoch", total=plan.steps_per_epoch, completed=0)
        self.loss, self.seen = 0.0, 0
        self.numbers: dict[str, str] = {}
        self.process = psutil.Process()
        self.live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)
        self.live.start()

    def step(self, record: Record) -> None:
        """Show a train record."""
        step, plan = record["step"], self.plan
        if math.isfinite(record["loss"]):
            self.seen += 1
            self.loss += (record["loss"] - self.loss) / min(self.seen, _SMOOTHED)
        name = f"epoch {record['epoch']}/{plan.epochs:.4g}"
        self.progress.update(self.run, completed=step)
        done = (step - 1) % plan.steps_per_epoch + 1
        if done < self.progress.tasks[self.epoch].completed:
            self.progress.reset(self.epoch)  # including its speed and time
        self.progress.update(self.epoch, completed=done, description=name)
        speed = f"{record['images_per_s']:,.0f} img/s"
        if plan.world_size > 1:
            each = record["images_per_s"] / plan.world_size
            speed += f" ({each:,.0f} per rank, rank {record['slowest_rank']} {record['rank_spread']:+.0%} busier)"
        self.numbers |= {"loss": f"loss {self.loss:.4f}", "speed": speed, "lr": f"lr {record['lr']:.3g}"}

    def evaluated(self, record: Record) -> None:
        """Show an eval record."""
        if "accuracy" in record:
            self.numbers["accuracy"] = f"accuracy {record['accuracy']:.2%}"

    def stop(self) -> None:
        """Remove the display."""
        self.live.stop()

    def _render(self) -> RenderableType:
        """Render, in the display's thread, so that a record costs training neither disk access nor drawing."""
        numbers = [self.numbers.get(key, "") for key in ("loss", "accuracy", "speed", "lr")]
        saved = self.last_checkpoint()
        numbers += [
            _memory(self.process),
            saved and f"saved {saved}",
            f"restart {self.restarts}" if self.restarts else "",
        ]
        shown = [number for number in numbers if number]
        lines: list[str] = []  # wrapped between numbers, not within one
        for number in shown:
            if lines and len(lines[-1]) + 2 + len(number) <= self.progress.console.width:
                lines[-1] += f"  {number}"
            else:
                lines.append(number)
        return Group(self.progress, *(Text(line, style="dim", overflow="ellipsis") for line in lines))


def _memory(process: psutil.Process) -> str:
    """Return this rank's memory: that reserved by PyTorch on the GPU, or the process's."""
    if torch.cuda.is_available():
        return f"{torch.cuda.memory_reserved() / 1e9:.1f} GB on the GPU"
    return f"{process.memory_info().rss / 1e9:.1f} GB"
