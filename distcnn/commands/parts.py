"""`distcnn parts [KIND [NAME …]]`: the parts that a config can name, and their arguments."""

from distcnn.arguments import REQUIRED, Argument
from distcnn.commands import COMMANDS
from distcnn.commands.parser import Handler, Options, Parser
from distcnn.data.augment import OPERATIONS
from distcnn.data.sources import SOURCES
from distcnn.errors import InputError
from distcnn.inference.export import FORMATS
from distcnn.models import MODELS
from distcnn.optim import OPTIMIZERS, SCHEDULES
from distcnn.rank import LAUNCHERS
from distcnn.registry import Registry
from distcnn.tracking import TRACKERS
from distcnn.training.losses import LOSSES
from distcnn.training.metrics import METRICS

EPILOG = """examples:
  distcnn parts                     every kind, with the names of its parts
  distcnn parts optimizers          each optimizer's description and arguments
  distcnn parts optimizers torch.optim:RMSprop

An installed package adds parts by entry points of the group distcnn.KIND. Your own parts need no entry point: name them
as package.module:callable.
"""
# Each kind, and where its parts are named.
KINDS = {
    parts.kind: (parts, where)
    for parts, where in (
        (MODELS, "model.name"),
        (OPTIMIZERS, "optim.name"),
        (SCHEDULES, "schedule.name"),
        (LOSSES, "loss.name"),
        (METRICS, "eval.metrics"),
        (SOURCES, "data.source"),
        (OPERATIONS, "data.augment"),
        (TRACKERS, "tracking.backends"),
        (LAUNCHERS, "detected in the environment"),
        (FORMATS, "distcnn export --format"),
        (COMMANDS, "distcnn COMMAND"),
    )
}


def parts(parser: Parser) -> Handler:
    """List the parts that a config can name, and their arguments."""
    parser.epilog, add = EPILOG, parser.add_argument
    add("kind", metavar="KIND", nargs="?", choices=list(KINDS), help=f"one of {', '.join(KINDS)}")
    add("names", metavar="NAME", nargs="*", help="default: all of that kind")
    return run


def run(options: Options) -> None:
    """Print the parts, with the reason if one cannot be imported. Raises InputError if that one was named."""
    if options.kind is None:
        for kind, (known, where) in KINDS.items():
            print(f"{kind} ({where}): {', '.join(known.targets)}")
        return
    known, where = KINDS[options.kind]
    print(f"{options.kind} ({where})")
    for name in options.names or known.targets:
        try:
            print("\n".join(["", *_described(known, name)]))
        except InputError as error:
            if options.names:
                raise InputError(f"{name}: {error}") from error
            print(f"\n{name}: {error}")


def _described(known: Registry, name: str) -> list[str]:
    part = known.load(name)
    text = (part.__doc__ or "").strip().partition("\n")[0]
    arguments = map(_line, known.arguments(name))
    return [f"{name} = {known.targets.get(name, name)}", *([f"  {text}"] if text else []), *arguments]


def _line(argument: Argument) -> str:
    default = "" if argument.default is REQUIRED else f" = {argument.default}"
    text = f"    {argument.description}" if argument.description else ""
    return f"    {argument.name} <{argument.type_name}>{default}{text}"
