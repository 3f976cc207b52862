"""The one way that tests start ranks: real processes, as a user starts them, free of any launcher's variables."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import psutil

LAUNCHER_PREFIXES = ("SLURM_", "OMPI_", "PMI", "TORCHELASTIC", "ACCELERATE_", "WANDB_", "MASTER_", "OMP_")
LAUNCHER_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NO_COLOR", "FORCE_COLOR")
TIMEOUT = 300  # seconds until a hang becomes a failure

Environment = Mapping[str, str]
Words = Sequence[str | Path | int]


@dataclass(frozen=True)
class Outcome:
    """Exit codes by rank, and the output of all ranks, one after the other."""

    codes: list[int]
    out: str
    err: str


def clean_environment() -> dict[str, str]:
    """This process's variables without those that a launcher sets or that change what distcnn prints."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(LAUNCHER_PREFIXES) and key not in LAUNCHER_NAMES
    }
    return environment | {"PYTHONWARNINGS": "default", "COLUMNS": "200"}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def bare(size: int) -> list[dict[str, str]]:
    """The variables of each rank that any launcher sets, for ranks on this host; none for a single process."""
    if size == 1:
        return [{}]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def torchrun(ranks: int, *options: str) -> tuple[str, ...]:
    """distcnn under torchrun, as the `program` of `start`."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *options)
    return (*launcher, "-m", "distcnn")


class Ranks:
    """Processes that belong together, by rank: `ranks[1].send_signal(…)`, `ranks.until(…)`, `ranks.wait()`.

    What they write goes to files without a name, so no pipe fills up, and it can be read at any time. At the end of
    the `with` block they are killed, and so are the processes that they have started.
    """

    def __init__(
        self,
        commands: Iterable[tuple[Words, Environment]],
        cwd: Path | None = None,
        start_new_session: bool = False,
        stderr: int | None = None,
    ):
        self.processes: list[subprocess.Popen[bytes]] = []
        self._files: list[tuple[IO[bytes], IO[bytes]]] = []
        self._texts: list[tuple[str, str]] = []
        self._seen: set[psutil.Process] = set()
        try:
            for command, environment in commands:
                out, err = TemporaryFile(), TemporaryFile()  # noqa: SIM115 - closed in `close`
                self._files.append((out, err))
                self.processes.append(
                    subprocess.Popen(
                        [*map(str, command)], cwd=cwd, env=dict(environment), stdin=subprocess.DEVNULL, stdout=out,
                        stderr=err if stderr is None else stderr, start_new_session=start_new_session,
                    )
                )  # fmt: skip
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, rank: int) -> subprocess.Popen[bytes]:
        return self.processes[rank]

    def __iter__(self) -> Iterator[subprocess.Popen[bytes]]:
        return iter(self.processes)

    def out(self, rank: int | None = None) -> str:
        """Stdout so far, of one rank or of all."""
        return self._written(0, rank)

    def err(self, rank: int | None = None) -> str:
        """Stderr so far, of one rank or of all."""
        return self._written(1, rank)

    def wait(self, timeout: float = TIMEOUT) -> list[int]:
        """Wait until all have ended; returns the exit codes."""
        end = time.monotonic() + timeout
        for rank, process in enumerate(self.processes):
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"rank {rank} runs after {timeout:.0f} s\n{self.err()}") from None
        return [process.returncode for process in self.processes]

    def outcome(self, timeout: float = TIMEOUT) -> Outcome:
        """Wait until all have ended; returns the exit codes and all output."""
        codes = self.wait(timeout)
        return Outcome(codes, self.out(), self.err())

    def until(self, condition: Callable[[], object], rank: int | None = None) -> None:
        """Wait for a condition while all ranks run, or while the given one does."""
        watched = self.processes if rank is None else [self.processes[rank]]
        end = time.monotonic() + TIMEOUT
        while not condition():
            assert all(process.poll() is None for process in watched), f"ended too early\n{self.err()}"
            assert time.monotonic() < end, f"waited in vain\n{self.err()}"
            time.sleep(0.02)

    def alive(self) -> list[psutil.Process]:
        """Every process of it that runs: the ranks, and what they have started, as far as it was seen here before."""
        started = [psutil.Process(process.pid) for process in self.processes if process.poll() is None]
        for process in [*started, *self._seen]:
            try:
                self._seen |= {process, *process.children(recursive=True)}
            except psutil.NoSuchProcess:
                continue
        return [process for process in self._seen if _runs(process)]

    def children(self, rank: int = 0) -> list[psutil.Process]:
        """The processes that a rank, or a launcher in its place, has started."""
        try:
            found = psutil.Process(self.processes[rank].pid).children()
        except psutil.NoSuchProcess:
            return []
        self._seen |= set(found)
        return found

    def close(self) -> None:
        """Kill what is left of them; what they have written stays readable."""
        for process in self.alive():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        for process in self.processes:
            process.wait()
        self._texts += [(_content(out), _content(err)) for out, err in self._files]
        for file in (file for both in self._files for file in both):
            file.close()
        self._files = []

    def _written(self, which: int, rank: int | None) -> str:
        texts = self._texts or [(_content(out), _content(err)) for out, err in self._files]
        return "".join(both[which] for both in (texts if rank is None else [texts[rank]]))


def start(
    arguments: Words,
    ranks: int | Sequence[Environment] = 1,
    program: Words = ("-m", "distcnn"),
    cwd: Path | None = None,
    within: Words = (),
    start_new_session: bool = False,
    stderr: int | None = None,
    **environment: str,
) -> Ranks:
    """Start `python -m distcnn …` as so many processes, or one for each of the given sets of variables.

    A number gives each rank the variables that any launcher sets; 1 is a plain process. `program` is what Python runs
    instead of distcnn, `within` a command that runs Python (`taskset -c 0`), `stderr` a descriptor instead of a file;
    the environment is shared.
    """
    own = bare(ranks) if isinstance(ranks, int) else ranks
    command = [*within, sys.executable, *program, *arguments]
    shared = clean_environment() | environment
    return Ranks([(command, shared | one) for one in own], cwd, start_new_session, stderr)


def run_ranks(
    arguments: Words,
    ranks: int | Sequence[Environment] = 1,
    cwd: Path | None = None,
    program: Words = ("-m", "distcnn"),
    within: Words = (),
    **environment: str,
) -> Outcome:
    """Start them as `start` does, and wait for their end."""
    with start(arguments, ranks, program, cwd, within, **environment) as started:
        return started.outcome()


def run_torchrun(arguments: Words, ranks: int, cwd: Path | None = None, **environment: str) -> Outcome:
    """Run them under torchrun: one exit code, torchrun's."""
    return run_ranks(arguments, 1, cwd, torchrun(ranks), **environment)


def _content(file: IO[bytes]) -> str:
    """The whole file; its process writes at the offset that both share, which must not be moved."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
