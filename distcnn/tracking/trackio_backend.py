"""trackio: a local database with a dashboard, `trackio show` (https://huggingface.co/docs/trackio)."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from distcnn.config.schema import Config
from distcnn.registry import Problem, checked_by
from distcnn.runs.records import Record
from distcnn.text import missing
from distcnn.tracking.backend import TrackedRun


def _problems(config: Config, args: Mapping[str, Any]) -> Iterator[Problem]:  # noqa: ARG001
    if needs := missing("trackio", "trackio"):
        yield ("tracking.backends",), needs


@checked_by(_problems)
class TrackioBackend:
    """One run, in $TRACKIO_DIR or trackio's default folder.

    A resumed run replaces what its earlier starts logged, which may lack steps before the checkpoint and have steps
    after it.
    """

    def __init__(self, run: TrackedRun):
        import trackio
        import trackio.run
        import trackio.utils

        # trackio prints to stdout, which the console uses, and has no setting against it; redirecting sys.stdout would
        # affect the whole process.
        for module in (trackio, trackio.run, trackio.utils):
            vars(module)["print"] = lambda *_, **__: None
        project, name = run.config.tracking.project, f"{run.folder.name}-{run.id}"
        with suppress(ValueError):  # the project does not exist yet
            for earlier in trackio.Api().runs(project):
                if earlier.name == name:
                    earlier.delete()
        self.run = trackio.init(
            project=project, name=name, group=run.config.tracking.group, config=run.settings, resume="allow",
            embed=False, auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def log(self, values: dict[str, float], step: int) -> None:
        """Log a row, in double precision."""
        self.run.log(values, step=step)

    def finish(self, status: str, summary: Record) -> None:  # noqa: ARG002
        """Flush and close the run."""
        self.run.finish()  # type: ignore[no-untyped-call]
