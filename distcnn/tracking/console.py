"""Console output: progress bars on a terminal, one line per epoch in a log file, a table at start and end."""

import os
import time
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distcnn.config.plan import Plan, Workload
from distcnn.runs.records import Record, further_metrics
from distcnn.text import plural
from distcnn.tracking.live import LiveDisplay


class ConsoleTracker:
    """A Tracker that prints to stdout; rich adapts the output to terminals, pipes and NO_COLOR.

    `header` is printed first. `last_checkpoint` names the newest checkpoint; the display's thread calls it.
    """

    def __init__(
        self,
        plan: Plan,
        header: Table,
        start_step: int = 0,
        console: Console | None = None,
        restarts: int = 0,
        last_checkpoint: Callable[[], str] = lambda: "",
    ):
        # Open MPI gives each rank a pseudo-terminal, even if mpirun's output is not one.
        terminal = False if "OMPI_COMM_WORLD_RANK" in os.environ else None
        self.plan, self.console = plan, console or Console(highlight=False, soft_wrap=True, force_terminal=terminal)
        self.console.print(header)
        self.started, self.start_step = time.perf_counter(), start_step
        self.losses: list[float] = []
        self.speeds: list[float] = []
        self.lr = 0.0
        self.live: LiveDisplay | None = None
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self.live = LiveDisplay(self.console, plan, start_step, restarts, last_checkpoint)

    def log(self, record: Record) -> None:
        """Show one record."""
        if record["kind"] == "train":
            self._train(record)
        elif record["kind"] == "eval":
            if self.live is not None:
                self.live.evaluated(record)
            self._line(record["step"], record)
        elif record["event"] not in ("started", "done"):  # shown by the tables at start and end
            self._print(f"{record['event'].replace('_', ' ')}: {record['message']}")

    def _train(self, record: Record) -> None:
        step = record["step"]
        # An epoch without evaluation gets its line when the next one starts, as evaluations are logged after the step.
        if (step - 1) % self.plan.steps_per_epoch == 0 and self.losses:
            self._line(step - 1, None)
        self.losses.append(record["loss"])
        self.speeds.append(record["images_per_s"])
        self.lr = record["lr"]
        if self.live is not None:
            self.live.step(record)

    def _line(self, step: int, evaluation: Record | None) -> None:
        epoch = step / self.plan.steps_per_epoch
        parts = [f"epoch {epoch:.4g}/{self.plan.epochs:.4g}", f"step {step}"]
        if self.losses:
            parts.append(f"loss {sum(self.losses) / len(self.losses):.4f}")
        if evaluation is not None:
            parts.append(_evaluated(evaluation))
        parts.append(f"lr {self.lr:.3g}")
        if self.speeds:
            parts.append(f"{sum(self.speeds) / len(self.speeds):,.0f} img/s")
        done = step - self.start_step
        left = (time.perf_counter() - self.started) / max(done, 1) * (self.plan.steps - step)
        parts.append(f"eta {timedelta(seconds=round(left))}")
        self._print("  ".join(parts))
        self.losses, self.speeds = [], []

    def _print(self, line: str) -> None:
        # Names and paths may contain [brackets] and :colons:, which are not rich markup.
        self.console.print(line, markup=False, emoji=False, soft_wrap=True)

    def finish(self, status: str, summary: Record) -> None:
        """Print the final table."""
        if self.live is not None:
            self.live.stop()
        self.console.print(
            fields_table(f"{status} in {timedelta(seconds=round(time.perf_counter() - self.started))}", summary)
        )


def _evaluated(record: Record) -> str:
    """Format as `test loss 0.5000  accuracy 70.00% (7/10)`, followed by the configured metrics."""
    parts = [f"test loss {record['loss']:.4f}"] if "loss" in record else []
    if "accuracy" in record:
        parts.append(f"accuracy {record['accuracy']:.2%} ({record['correct']}/{record['total']})")
    return "  ".join([*parts, *(f"{key} {value:.4g}" for key, value in further_metrics(record).items())])


def plan_table(plan: Plan, workload: Workload, name: str, launcher: str) -> Table:
    """Build the table printed at the start of a run: its plan, workload and launcher."""
    ranks = plural(plan.world_size, "rank")
    total = 3 * workload.forward_flops * plan.steps * plan.batch_size / 1e12
    return fields_table(
        name,
        {
            "batch": f"{plan.micro_batch} per rank × {ranks} × {plan.accumulation} accumulated = {plan.batch_size}",
            "steps": f"{plan.steps} ({plan.epochs:.4g} epochs of {plan.steps_per_epoch})",
            "images": f"{plan.train_images:,} for training, {plan.test_images:,} for testing",
            "learning rate": f"{plan.lr:.4g} at its peak",
            "parameters": f"{workload.parameters:,}",
            "FLOPs": f"{workload.forward_flops / 1e6:,.1f} M per image forward; about {total:,.1f} T in total",
            "device": f"{workload.device}, {plural(workload.threads, 'thread')} per rank",
            "precision": workload.precision,
            "launcher": launcher,
        },
    )


def fields_table(title: str, fields: Record) -> Table:
    """Build a borderless two-column table, readable in log files too."""
    table = Table(
        title=Text(title), title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
    )
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for key, value in fields.items():
        table.add_row(key, Text(str(value)))  # verbatim, without markup
    return table
