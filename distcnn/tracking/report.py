"""The report that a run writes of itself at its end."""

import sys
from pathlib import Path

from distcnn.report.page import write_page
from distcnn.runs.history import read_history
from distcnn.runs.records import Record


class ReportTracker:
    """Takes nothing; at the end it reads the folder, so it comes after the tracker of metrics.jsonl."""

    def __init__(self, folder: Path):
        self.folder = folder

    def log(self, record: Record) -> None:
        """Nothing: the log on the disk is what is reported."""

    def finish(self, status: str, summary: Record) -> None:  # noqa: ARG002
        """Write report.html. Whatever goes wrong costs a warning."""
        try:
            write_page([read_history(self.folder)], self.folder / "report.html")
        except Exception as error:  # the training is what matters
            print(f"warning: no report.html: {type(error).__name__}: {error}", file=sys.stderr)
