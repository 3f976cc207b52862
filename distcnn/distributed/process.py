"""The operating system's process of a rank, as other ranks know it."""

import os
import socket
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class RankProcess:
    """A process of some host."""

    host: str
    pid: int
    born: float  # its creation time, seconds since the epoch: another process may get its number

    @classmethod
    def own(cls) -> "RankProcess":
        """Return the one that calls it."""
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    def found(self) -> psutil.Process | None:
        """Return it, if it is on this host and not hidden from here, as by a container."""
        try:
            process = psutil.Process(self.pid)
            same = self.host == socket.gethostname() and abs(process.create_time() - self.born) < 1
        except psutil.Error:
            return None
        return process if same else None

    def kill(self) -> bool:
        """Kill it, if it is found; returns whether that was done."""
        process = self.found()
        try:
            if process is not None:
                process.kill()
        except psutil.Error:
            return False
        return process is not None


def has_ended(process: psutil.Process) -> bool:
    """Return whether a process has ended, also where its launcher has not asked for its exit code yet."""
    try:
        return not process.is_running() or process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
