"""The commands, one file each: its options, and the work that it starts. `-h` imports no torch."""

from distcnn.registry import Registry

# A command is a function that adds arguments to its parser and returns its handler, a function of the parsed options.
# Its docstring is the command's help; `distcnn --help` shows the first line.
COMMANDS = Registry(
    "commands",
    {
        "train": "distcnn.commands.train:train",
        "evaluate": "distcnn.commands.evaluate:evaluate",
        "trials": "distcnn.commands.trials:trials",
        "runs": "distcnn.commands.runs:runs",
        "report": "distcnn.commands.report:report",
        "predict": "distcnn.commands.predict:predict",
        "export": "distcnn.commands.export:export",
        "doctor": "distcnn.commands.doctor:doctor",
        "bench": "distcnn.commands.bench:bench",
        "slurm": "distcnn.commands.slurm:slurm",
        "parts": "distcnn.commands.parts:parts",
        "complete": "distcnn.commands.complete:complete",
    },
    given=("parser",),
)
