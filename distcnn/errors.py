"""The exceptions that users see, and the exit code of each.

Everything a user can cause or fix is one of these, printed as a plain message. Tracebacks are for bugs.
"""

import re
from collections.abc import Sequence

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_PREEMPTED, EXIT_INTERRUPTED = 0, 1, 2, 75, 130

# Messages of PyTorch and its allocators, CUDA, its libraries (cuBLAS, cuDNN, ...), NCCL; and of a DataLoader worker,
# whose error may arrive as text.
_OUT_OF_MEMORY = re.compile(
    r"CUDA out of memory|CUDA (?:driver )?error: out of memory|CU\w+_STATUS_\w*ALLOC(?:ATION)?_FAILED|"
    r"Cuda failure (?:\d+ )?'out of memory'|DefaultCPUAllocator|Caught \w*MemoryError in "
)


def means_out_of_memory(error: BaseException) -> bool:
    """Whether a library's exception means that a device, or the host, is out of memory."""
    by_type = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's
    return by_type or _OUT_OF_MEMORY.search(str(error)) is not None


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, with NCCL's "Last error", which gives the cause."""
    text = str(error).strip() or type(error).__name__
    first, (_, found, cause) = text.splitlines()[0], text.partition("Last error:")
    return f"{first} ({' '.join(cause.split())})" if found and cause.strip() else first


class DistcnnError(Exception):
    """A run failed for a reason that is printed without a traceback."""

    exit_code = EXIT_FAILED


class InputError(DistcnnError):
    """Invalid input: every problem found, each with what is wrong, where, and what would be valid."""

    exit_code = EXIT_BAD_INPUT

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class LauncherError(InputError):
    """Invalid variables of a launcher. Each rank sees only its own, so each prints its error."""


class DeviceError(InputError):
    """The device of one rank cannot do what is asked; the message names the rank and its host.

    The other ranks' devices may work, so each rank that fails prints its error, as with LauncherError. If all fail,
    rank 0 prints at once, and the others 2 s later unless they are ended first (as by torchrun or
    srun --kill-on-bad-exit).
    """


class RendezvousError(DistcnnError):
    """The rendezvous failed: a rank did not join, or is unreachable. A retry may help."""


class LostRankError(RendezvousError, RuntimeError):
    """Another rank is gone during the training; a RuntimeError like the one gloo raises then.

    `own`: this rank was the first to detect it, and prints the error.
    """

    def __init__(self, message: str, *, own: bool):
        self.own = own
        super().__init__(message)


class StoppedError(DistcnnError):
    """A signal ended the run, on all ranks at the same step boundary."""

    def __init__(self, message: str, exit_code: int):
        self.exit_code = exit_code
        super().__init__(message)


class OutOfMemoryError(DistcnnError):
    """A rank's device or host ran out of memory; `own`: it was this rank, before any other.

    The message names the rank, what it requested, and the settings that need less.
    """

    def __init__(self, message: str, *, own: bool = True):
        self.own = own
        super().__init__(message)


class NonFiniteLossError(DistcnnError):
    """The loss of a step is NaN or infinite on some rank; raised on all ranks."""
