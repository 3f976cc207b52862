"""The process of a rank, as other ranks identify it."""

import os
import socket
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class RankProcess:
    """A process on some host."""

    host: str
    pid: int
    born: float  # creation time in seconds since the epoch: the pid may be reused

    @classmethod
    def own(cls) -> "RankProcess":
        """Return the calling process."""
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    def found(self) -> psutil.Process | None:
        """Return its psutil.Process; None if it is on another host or hidden by a container."""
        try:
            process = psutil.Process(self.pid)
            same = self.host == socket.gethostname() and abs(process.create_time() - self.born) < 1
        except psutil.Error:
            return None
        return process if same else None

    def kill(self) -> bool:
        """Kill it if it is found; return whether it was."""
        process = self.found()
        try:
            if process is not None:
                process.kill()
        except psutil.Error:
            return False
        return process is not None


def has_ended(process: psutil.Process) -> bool:
    """Whether a process has ended, even if its launcher has not collected its exit code yet."""
    try:
        return not process.is_running() or process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
