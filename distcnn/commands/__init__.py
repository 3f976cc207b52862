"""The commands, one file each: what of the command line it takes, and what it starts. No torch is imported for `-h`."""

from distcnn.registry import Registry

# A command is a function (parser) -> what runs it. Its docstring is the command's help, the first line the one in
# `distcnn --help`; it adds arguments to the parser, and returns a function of the parsed options.
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
