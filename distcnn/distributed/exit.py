"""How ranks end: which of them prints an error, how long others wait for it, and how a launcher hears of the code."""

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
# Seconds that a rank waits before it prints or exits, for its launcher to end it meanwhile.
_FIRST_SPEAKS_S = 2  # the rank that failed first prints at once
_UNDER_TORCHRUN_S = 60  # the wait ends with rank 0's exit
_OTHERWISE_S = 5  # no launcher may end this rank


def exit_code_of(command: Callable[[], None]) -> int:
    """Run `command` as this rank's part of it; print how it failed, from one rank, and return the exit code."""
    code = EXIT_FAILED
    _tell_launcher("")
    try:
        command()
        code = EXIT_OK
    except DistcnnError as error:
        print_once(error)
        code = error.exit_code
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_OK
    except Exception as error:
        _tell_launcher(EXIT_FAILED)
        if lost_contact(error):
            time.sleep(_FIRST_SPEAKS_S)
            reason = str(error).splitlines()[0]
            _print(DistcnnError(f"{reason}\nThis rank lost another one in the middle of an exchange; that one, or its "
                                "launcher, says why, unless it was killed"))  # fmt: skip
        else:
            traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    _tell_launcher(code)
    return code


def end_at_once(error: DistcnnError) -> None:
    """End the process with the error's exit code, from a thread beside the main one, which may be anywhere."""
    try:
        if isinstance(error, StoppedError):
            print_once(error)
        elif str(error):  # else another rank prints it
            _print(error)
        _tell_launcher(error.exit_code)
    finally:  # what reads stderr may be gone
        os._exit(error.exit_code)


def lost_contact(error: Exception) -> bool:
    """Tell whether gloo or NCCL gave up because another rank has gone."""
    return (
        isinstance(error, RuntimeError)
        and not means_out_of_memory(error)  # NCCL says of that too that it is an NCCL error
        and re.search(r"gloo/transport|NCCL error|ncclRemoteError", str(error)) is not None
    )


def print_once(error: DistcnnError) -> None:
    """Print the message from one rank.

    The ranks of a node see the same files and devices, so its first rank speaks for all. Rank 0 does so at once;
    the others wait, to be ended by their launcher meanwhile: one that exited first could end rank 0 before it has
    spoken. The first rank of another node that nothing ended knows that only its node has the problem. A rank whose
    own variables or device are wrong, or that missed the others, may be the only one, and speaks too. So does the first
    rank that has run out of memory, or has found that another one has gone, at once: the others fail because of it.
    """
    if isinstance(error, OutOfMemoryError | LostRankError):
        if error.own:
            _print(error)
        else:
            time.sleep(_FIRST_SPEAKS_S)  # the end of this rank could be that of the one that speaks
        return
    rank, local_rank = rank_from_env(os.environ)
    if rank != 0 and isinstance(error, StoppedError):
        return  # all ranks stop together, and rank 0 says so
    if rank != 0:
        own = isinstance(error, DeviceError | LauncherError | RendezvousError)
        waits_s = _UNDER_TORCHRUN_S if "TORCHELASTIC_RUN_ID" in os.environ else _OTHERWISE_S
        time.sleep(_FIRST_SPEAKS_S if own else waits_s)
        if local_rank != 0 and not own:
            return
    _print(error)


def _print(error: DistcnnError) -> None:
    problems = error.problems if isinstance(error, InputError) else str(error).splitlines()
    lines = [f"distcnn: {_TITLES.get(type(error), 'failed')}", *(f"  {problem}" for problem in problems)]
    print("\n".join(lines), file=sys.stderr, flush=True)


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
    if code in _NOT_RETRIED and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and os.getppid() > 1:
        os.kill(os.getppid(), signal.SIGTERM)


def _weight(code: str) -> int:
    order = ("", f"{EXIT_OK}", f"{EXIT_PREEMPTED}")
    return order.index(code) if code in order else len(order)
