"""The exceptions a user can meet, and the exit code of each.

A traceback is for bugs; everything a user can cause or cure is one of these, printed as a plain message.
"""

import re
from collections.abc import Sequence

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_PREEMPTED, EXIT_INTERRUPTED = 0, 1, 2, 75, 130

# Of PyTorch and its allocators, CUDA, its libraries (cuBLAS, cuDNN, ...), NCCL; of a DataLoader's worker, which may
# hand on by its text alone what was raised there.
_OUT_OF_MEMORY = re.compile(
    r"CUDA out of memory|CUDA (?:driver )?error: out of memory|CU\w+_STATUS_\w*ALLOC(?:ATION)?_FAILED|"
    r"Cuda failure (?:\d+ )?'out of memory'|DefaultCPUAllocator|Caught \w*MemoryError in "
)


def means_out_of_memory(error: BaseException) -> bool:
    """Whether a library's exception says that the memory of a device, or of the host, was not enough."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's: not imported here
    return named or _OUT_OF_MEMORY.search(str(error)) is not None


def first_line(error: BaseException) -> str:
    """What an exception says, on one line; of NCCL's long message its own last word too, which tells the cause."""
    text = str(error).strip() or type(error).__name__
    first, (_, found, cause) = text.splitlines()[0], text.partition("Last error:")
    return f"{first} ({' '.join(cause.split())})" if found and cause.strip() else first


class DistcnnError(Exception):
    """A run that failed for a reason worth one sentence, not a traceback."""

    exit_code = EXIT_FAILED


class InputError(DistcnnError):
    """Input that cannot work: every problem found, each with what, where and what would be valid."""

    exit_code = EXIT_BAD_INPUT

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class LauncherError(InputError):
    """A launcher's variables that cannot be right. Each rank knows of its own only, so each speaks for itself."""


class DeviceError(InputError):
    """What the device of one rank cannot do; the message names the rank and its host.

    The devices of the others may be right, so each rank that has such a problem speaks for itself, as with
    LauncherError: where all have it, rank 0 does at once, and the others 2 s later, if nobody has ended them by then
    (torchrun and srun --kill-on-bad-exit do).
    """


class RendezvousError(DistcnnError):
    """The ranks did not all come, or could not reach each other. Another try may help."""


class LostRankError(RendezvousError, RuntimeError):
    """Another rank has gone in the middle of the training; a RuntimeError as what gloo raises then.

    `own`: it was this rank that found it, before any other, and says so.
    """

    def __init__(self, message: str, *, own: bool):
        self.own = own
        super().__init__(message)


class StoppedError(DistcnnError):
    """A signal ended the run, at a step boundary, on all ranks together."""

    def __init__(self, message: str, exit_code: int):
        self.exit_code = exit_code
        super().__init__(message)


class OutOfMemoryError(DistcnnError):
    """The memory of a device, or of the host, was not enough on some rank; `own`: on this one, before any other.

    The message says which rank, what it asked for, and which settings need less.
    """

    def __init__(self, message: str, *, own: bool = True):
        self.own = own
        super().__init__(message)


class NonFiniteLossError(DistcnnError):
    """The loss of one step was NaN or infinite on some rank; all ranks raise this together."""
