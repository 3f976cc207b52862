"""trackio: a local database and a dashboard of its own, `trackio show`. https://huggingface.co/docs/trackio."""

from collections.abc import Iterable
from typing import Any

from distcnn.config.schema import TrackingConfig
from distcnn.registry import Problem
from distcnn.runs.records import Record
from distcnn.text import missing
from distcnn.tracking.threaded import End


def problems(config: TrackingConfig) -> list[Problem]:
    """What is wrong with the request."""
    if config.trackio and (needs := missing("trackio", "trackio")):
        return [(("tracking.trackio",), needs)]
    return []


class TrackioRun:
    """One run, in $TRACKIO_DIR or trackio's own folder. What it holds from before a resume is not added again."""

    def __init__(self, name: str, project: str, group: str | None, config: dict[str, Any]):
        import trackio
        import trackio.run
        import trackio.utils
        from trackio.sqlite_storage import SQLiteStorage

        for module in (
            trackio,
            trackio.run,
            trackio.utils,
        ):  # it tells stdout what it does, and stdout is the console's
            vars(module)["print"] = lambda *_, **__: None
        self.run = trackio.init(
            project=project, name=name, group=group, config=config, resume="allow", embed=False, auto_log_gpu=False,
            auto_log_cpu=False,
        )  # fmt: skip
        found = SQLiteStorage.get_logs(project, name)
        self.known = {(row["step"], key) for row in found for key in row}

    def refill(self, history: Iterable[tuple[int, dict[str, float]]]) -> None:
        """What the database does not hold."""
        for step, values in history:
            self.log(values, step)

    def log(self, values: dict[str, float], step: int) -> None:
        """As they are, in double precision; but for what an earlier start has logged of steps after the checkpoint."""
        if new := {key: value for key, value in values.items() if (step, key) not in self.known}:
            self.run.log(new, step=step)

    def finish(self, status: str, summary: Record, end: End) -> None:  # noqa: ARG002
        """Flush."""
        self.run.finish()  # type: ignore[no-untyped-call]
