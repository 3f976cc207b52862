"""`distcnn report RUN [RUN …]`: one HTML file about a run, or comparing several."""

import sys
from pathlib import Path

from distcnn.commands.parser import Handler, Options, Parser
from distcnn.errors import InputError
from distcnn.runs.history import read_history

EPILOG = """examples:
  distcnn report runs/simple_cnn                       writes runs/simple_cnn/report.html
  distcnn report runs/a runs/b runs/c --output abc.html

The file is self-contained and makes no network requests. A training writes its report when it ends, unless
tracking.report is false; for a run that is still running or has died, the report shows what has been logged so far.
Damaged data is named in it and left out.
"""


def report(parser: Parser) -> Handler:
    """Write one HTML file about a run, or comparing several."""
    parser.epilog, add = EPILOG, parser.add_argument
    add("runs", metavar="RUN", nargs="+", help="run folders")
    add(
        "--output",
        metavar="FILE",
        help="default: report.html in the run's folder; for several runs, in the current one",
    )
    return run


def run(options: Options) -> None:
    """Write the report, and print its path and size. Raises InputError."""
    from distcnn.report.page import missing, write_page

    folders = [Path(folder) for folder in dict.fromkeys(options.runs)]
    if problem := missing():
        raise InputError(f"distcnn report: {problem}")
    runs, problems = [], []
    for folder in folders:
        try:
            runs.append(read_history(folder))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    output = Path(options.output) if options.output else folders[0] / "report.html"
    if len(folders) > 1 and not options.output:
        output = Path("report.html")
    try:
        size = write_page(runs, output)
    except OSError as error:
        raise InputError(f"--output {output}: {error.strerror}; give a file in a folder that can be written") from error
    for one in runs:
        for damage in one.damage:
            print(f"warning: {one.folder}: {damage}", file=sys.stderr)
    print(f"{output}: {size / 1e6:.1f} MB")
