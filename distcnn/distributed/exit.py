"""How ranks exit: which of them prints an error, how long the others wait, and how the launcher gets the exit code."""

import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

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

_NOT_RETRIED = (EXIT_BAD_INPUT, EXIT_PREEMPTED, EXIT_INTERRUPTED)
_TITLES = {
    InputError: "bad input",
    DeviceError: "bad input",
    LauncherError: "bad environment",
    StoppedError: "stopped",
    OutOfMemoryError: "out of memory",
}
# Seconds that a rank waits before it prints or exits, for its launcher to end it first.
_FIRST_PRINTS_S = 2  # the rank that failed first prints at once
_UNDER_TORCHRUN_S = 60  # the wait ends with rank 0's exit
_OTHERWISE_S = 5  # no launcher may end this rank


def exit_code_of(command: Callable[[], None]) -> int:
    """Run `command` on this rank and return the exit code; print an error from one rank."""
    code = EXIT_FAILED
    _publish_exit_code("")
    try:
        command()
        code = EXIT_OK
    except DistcnnError as error:
        print_once(error)
        code = error.exit_code
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_OK
    except Exception as error:
        _publish_exit_code(EXIT_FAILED)
        if lost_contact(error):
            time.sleep(_FIRST_PRINTS_S)
            reason = str(error).splitlines()[0]
            _print(DistcnnError(f"{reason}\nLost contact with another rank during a collective: for the cause see "
                                "that rank's output, or its launcher's"))  # fmt: skip
        else:
            traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    _publish_exit_code(code)
    return code


def end_at_once(error: DistcnnError) -> None:
    """End the process with the error's exit code. Called from a helper thread: the main thread may be blocked."""
    try:
        if isinstance(error, StoppedError):
            print_once(error)
        elif str(error):  # otherwise another rank prints it
            _print(error)
        _publish_exit_code(error.exit_code)
    finally:  # stderr may be closed
        os._exit(error.exit_code)


def lost_contact(error: Exception) -> bool:
    """Whether gloo or NCCL raised the error because another rank is gone."""
    return (
        isinstance(error, RuntimeError)
        and not means_out_of_memory(error)  # NCCL calls that an NCCL error, too
        and re.search(r"gloo/transport|NCCL error|ncclRemoteError", str(error)) is not None
    )


def print_once(error: DistcnnError) -> None:
    """Print the error from one rank.

    The ranks of a node see the same files and devices, so its first rank prints for all. Rank 0 prints at once; the
    others wait for their launcher to end them, as their exit could end rank 0 before it has printed. If nothing ends
    the first rank of another node, only its node has the problem, and it prints. A rank whose own variables or device
    are wrong, or that failed at the rendezvous, may be the only one, and prints too. The first rank that runs out of
    memory, or detects a lost rank, prints at once: the others fail because of it.
    """
    if isinstance(error, OutOfMemoryError | LostRankError):
        if error.own:
            _print(error)
        else:
            time.sleep(_FIRST_PRINTS_S)  # this rank's exit could end the one that prints
        return
    rank, local_rank = rank_from_env(os.environ)
    if rank != 0 and isinstance(error, StoppedError):
        return  # all ranks stop together, and rank 0 prints it
    if rank != 0:
        own = isinstance(error, DeviceError | LauncherError | RendezvousError)
        waits_s = _UNDER_TORCHRUN_S if "TORCHELASTIC_RUN_ID" in os.environ else _OTHERWISE_S
        time.sleep(_FIRST_PRINTS_S if own else waits_s)
        if local_rank != 0 and not own:
            return
    _print(error)


def _print(error: DistcnnError) -> None:
    problems = error.problems if isinstance(error, InputError) else str(error).splitlines()
    lines = [f"distcnn: {_TITLES.get(type(error), 'failed')}", *(f"  {problem}" for problem in problems)]
    print("\n".join(lines), file=sys.stderr, flush=True)


def _publish_exit_code(code: int | str) -> None:
    """Publish the exit code to launchers that would lose it; "" means still running.

    torchrun exits with 1 whatever its workers' codes: a script that needs the code creates a file and names it in
    DISTCNN_EXIT_CODE_FILE. And torchrun --max-restarts would restart a run with bad input, or a preempted one, at
    once: its agent gets SIGTERM instead (https://docs.pytorch.org/docs/stable/elastic/agent.html).
    """
    first = rank_from_env(os.environ)[1] == 0
    path = Path(os.environ.get("DISTCNN_EXIT_CODE_FILE", "/dev/null/no"))
    if path.exists():  # not on the other nodes
        if code == "":
            if first:
                path.write_text("", encoding="ascii")
        # When one rank fails, torchrun ends the others by SIGTERM: the failure takes precedence.
        elif _precedence(f"{code}") > _precedence(path.read_text(encoding="ascii")):
            path.write_text(f"{code}", encoding="ascii")
    if not first:
        return
    if code in _NOT_RETRIED and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and os.getppid() > 1:
        os.kill(os.getppid(), signal.SIGTERM)


def _precedence(code: str) -> int:
    order = ("", f"{EXIT_OK}", f"{EXIT_PREEMPTED}")
    return order.index(code) if code in order else len(order)
