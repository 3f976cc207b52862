"""Write a run's report.html when it ends."""

import sys
from pathlib import Path

from distcnn.report.page import write_page
from distcnn.runs.history import read_history
from distcnn.runs.records import Record


class ReportTracker:
    """A Tracker that reads the folder at the end, so it must come after the tracker of metrics.jsonl."""

    def __init__(self, folder: Path):
        self.folder = folder

    def log(self, record: Record) -> None:
        """Do nothing: the report is made from metrics.jsonl."""

    def finish(self, status: str, summary: Record) -> None:  # noqa: ARG002
        """Write report.html. An error is only a warning."""
        try:
            write_page([read_history(self.folder)], self.folder / "report.html")
        except Exception as error:  # a report must not fail the run
            print(f"warning: no report.html: {type(error).__name__}: {error}", file=sys.stderr)
