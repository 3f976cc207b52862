"""The command line: parse, dispatch, exit code. torch is imported late, so that `--help` answers at once."""

import argparse
import importlib
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from distcnn import __version__
from distcnn.distributed.shutdown import end_process
from distcnn.errors import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PREEMPTED,
    DeviceError,
    DistcnnError,
    InputError,
    LauncherError,
    LostRankError,
    OutOfMemoryError,
    RendezvousError,
    StoppedError,
    means_out_of_memory,
)
from distcnn.rank import rank_from_env

NOT_RETRIED = (EXIT_BAD_INPUT, EXIT_PREEMPTED, EXIT_INTERRUPTED)

EPILOG = """examples:
  distcnn train configs/simple_cnn.yaml
  distcnn train configs/simple_cnn.yaml --data.source folder --data.root DIR --train.duration 5ep
  torchrun --standalone --nproc_per_node=2 -m distcnn train configs/cifar10_cnn.yaml --optim.lr 0.1
  distcnn evaluate runs/simple_cnn
  distcnn trials configs/digits.yaml -n 5
  distcnn runs --sort accuracy
  distcnn report runs/simple_cnn
  distcnn predict runs/simple_cnn photos/ --top 3
  distcnn export runs/simple_cnn --format onnx
  torchrun --standalone --nproc_per_node=2 -m distcnn doctor
  distcnn bench step configs/cifar10_cnn.yaml
  distcnn slurm configs/cifar10_resnet18.yaml --nodes 1 --gpus-per-node 4 --time 02:00:00

exit codes: 0 done, 1 failed, 2 bad input, 75 stopped by a scheduler's signal and worth starting again, 130 interrupted
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    code = EXIT_FAILED
    _tell_launcher("")
    try:
        code = _command(sys.argv[1:] if arguments is None else list(arguments))
    except DistcnnError as error:
        _speak_once(error)
        code = error.exit_code
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_OK
    except Exception as error:
        _tell_launcher(EXIT_FAILED)
        if _lost_contact(error):
            time.sleep(2)  # the rank that failed first has its say first
            reason = str(error).splitlines()[0]
            _print(DistcnnError(f"{reason}\nThis rank lost another one in the middle of an exchange; that one, or its "
                                "launcher, says why, unless it was killed"))  # fmt: skip
        else:
            traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    _tell_launcher(code)
    return code


def program() -> NoReturn:
    """The program `distcnn`: one command, then the end of the process."""
    end_process(main())


def _lost_contact(error: Exception) -> bool:
    """Whether gloo or NCCL gave up because another rank has gone."""
    return (
        isinstance(error, RuntimeError)
        and not means_out_of_memory(error)  # NCCL says of that too that it is an NCCL error
        and re.search(r"gloo/transport|NCCL error|ncclRemoteError", str(error)) is not None
    )


def _end_at_once(error: DistcnnError) -> None:
    """From a thread beside the main one, which may stand anywhere."""
    try:
        if isinstance(error, StoppedError):
            _speak_once(error)
        elif str(error):  # else another rank speaks
            _print(error)
        _tell_launcher(error.exit_code)
    finally:  # whoever read stderr may be gone
        os._exit(error.exit_code)


def _command(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "distcnn",
        description="Distributed training of image-classifying CNNs in PyTorch.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"distcnn {__version__}")
    commands = parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    commands.help = "; ".join(f"{name} {path}: {text}" for name, (path, text, _) in COMMANDS.items())
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="see distcnn COMMAND --help")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(Path.cwd()))  # a user's own package.module:callable, as `python -m` finds it
    return COMMANDS[options.command][2](options.rest)


def _path_first(command: str, rest: list[str]) -> tuple[Path, list[str]]:
    """The path that a command begins with, and its settings; or its help."""
    what, text, _ = COMMANDS[command]
    if {"-h", "--help"} & set(rest):
        print(f"usage: distcnn {command} {what} [--section.key value ...]\n\n{text}\n")
        if command == "train":
            print("-q, --quiet: the same as --tracking.console false\n")
        _print_keys()
        raise SystemExit(EXIT_OK)
    if not rest or rest[0].startswith("-"):
        raise InputError(f"distcnn {command}: needs {what} first; see distcnn {command} --help")
    return Path(rest[0]), rest[1:]


def _train(rest: list[str]) -> int:
    path, arguments = _path_first("train", rest)
    from distcnn.config.settings import Settings
    from distcnn.distributed.signals import catching_signals
    from distcnn.distributed.world import world_from

    with catching_signals(_end_at_once) as stop:
        world = world_from(os.environ)
        quiet = [word for word in arguments if word in ("-q", "--quiet")]
        settings = Settings().read_yaml(path).read_arguments([word for word in arguments if word not in quiet])
        settings.default("name", path.stem)
        if quiet:
            settings.update({"tracking.console": False})
        from distcnn.training.build import checked
        from distcnn.training.train import train

        train(checked(settings, world), world, stop)
    return EXIT_OK


def _evaluate(rest: list[str]) -> int:
    path, arguments = _path_first("evaluate", rest)
    from distcnn.config.settings import Settings
    from distcnn.distributed.world import world_from

    if not path.exists():  # before torch is imported
        raise InputError(f"{path}: no such run folder or checkpoint")
    world = world_from(os.environ)
    from distcnn.inference.evaluate import evaluate_checkpoint

    record = evaluate_checkpoint(path, Settings().read_arguments(arguments), world)
    if world.is_main:
        for name, accuracy in record["per_class"].items():
            print(f"{name:>20}  {'no images' if accuracy is None else f'{accuracy:.2%}'}")
        print(f"{'all':>20}  {record['accuracy']:.2%}  ({record['correct']} of {record['total']})")
        print(json.dumps(record), flush=True)
    return EXIT_OK


def _tool(name: str) -> Callable[[list[str]], int]:
    def run(rest: list[str]) -> int:
        importlib.import_module(f"distcnn.commands.{name}").run(rest)
        return EXIT_OK

    return run


def _print_keys() -> None:
    from distcnn.config.keys import documented_keys

    print("keys, in the YAML file or as --section.key value:\n")
    for key, kind, default, description in documented_keys():
        print(f"  {key} <{kind}> = {default}\n      {description}")


def _speak_once(error: DistcnnError) -> None:
    """Print the message from one rank.

    The ranks of a node see the same files and devices, so its first rank speaks for all. Rank 0 does so at once;
    the others wait, to be ended by their launcher meanwhile: one that exited first could end rank 0 before it has
    spoken. The first rank of another node that nobody ended knows that only its node has the problem. A rank whose
    own variables or device are wrong, or that missed the others, may be the only one, and speaks too. So does the first
    rank that has run out of memory, or has found that another one has gone, at once: the others fail because of it.
    """
    if isinstance(error, OutOfMemoryError | LostRankError):
        if error.own:
            _print(error)
        else:
            time.sleep(2)  # the end of this rank could be that of the one that speaks
        return
    rank, local_rank = rank_from_env(os.environ)
    if rank != 0 and isinstance(error, StoppedError):
        return  # all ranks stop together, and rank 0 says so
    if rank != 0:
        # Under torchrun the wait ends with rank 0's exit; elsewhere nobody may end it.
        own = isinstance(error, DeviceError | LauncherError | RendezvousError)
        time.sleep(2 if own else 60 if "TORCHELASTIC_RUN_ID" in os.environ else 5)
        if local_rank != 0 and not own:
            return
    _print(error)


def _print(error: DistcnnError) -> None:
    problems = error.problems if isinstance(error, InputError) else str(error).splitlines()
    titles = {
        InputError: "distcnn: bad input",
        DeviceError: "distcnn: bad input",
        LauncherError: "distcnn: bad environment",
        StoppedError: "distcnn: stopped",
        OutOfMemoryError: "distcnn: out of memory",
    }
    title = titles.get(type(error), "distcnn: failed")
    print("\n".join([title, *(f"  {problem}" for problem in problems)]), file=sys.stderr, flush=True)


def _tell_launcher(code: int | str) -> None:
    """Say how this run ended, or with "" that it has not yet, where an exit code alone does not get through.

    torchrun ends with 1 whatever its workers' codes are: a script that wants to know makes a file and names it in
    DISTCNN_EXIT_CODE_FILE. And torchrun --max-restarts would start bad input, or a run that was asked to make room,
    again at once: its agent is asked to end instead (https://docs.pytorch.org/docs/stable/elastic/agent.html).
    """
    first = rank_from_env(os.environ)[1] == 0
    path = Path(os.environ.get("DISTCNN_EXIT_CODE_FILE", "/dev/null/no"))
    if path.exists():  # it does not on the other nodes
        if code == "":
            if first:
                path.write_text("", encoding="ascii")
        # When one rank fails, torchrun ends the others by SIGTERM: the failure stands.
        elif _weight(f"{code}") > _weight(path.read_text(encoding="ascii")):
            path.write_text(f"{code}", encoding="ascii")
    if not first:
        return
    if code in NOT_RETRIED and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and os.getppid() > 1:
        os.kill(os.getppid(), signal.SIGTERM)


def _weight(code: str) -> int:
    order = ("", f"{EXIT_OK}", f"{EXIT_PREEMPTED}")
    return order.index(code) if code in order else len(order)


COMMANDS: dict[str, tuple[str, str, Callable[[list[str]], int]]] = {
    "train": ("CONFIG.yaml", "train and evaluate as a YAML file says", _train),
    "evaluate": ("RUN_OR_CHECKPOINT", "evaluate a run's newest checkpoint, or a given one", _evaluate),
    "trials": ("CONFIG.yaml -n N", "the same run over N seeds, and beside another one", _tool("trials")),
    "runs": ("[FOLDER]", "a table of the runs in a folder", _tool("runs")),
    "report": ("RUN [RUN …]", "one HTML file about a run, or about several side by side", _tool("report")),
    "predict": ("MODEL PATH…", "the most probable classes of images", _tool("predict")),
    "export": ("MODEL", "write a model as ONNX, torch.export, TorchScript or safetensors", _tool("export")),
    "doctor": ("", "what of this machine, launcher and network will not do, and the cure", _tool("doctor")),
    "bench": ("step CONFIG.yaml", "measure a run's training step, and the machine's best", _tool("bench")),
    "slurm": ("CONFIG.yaml", "write and submit a batch script for a run", _tool("slurm")),
}

if __name__ == "__main__":
    program()
