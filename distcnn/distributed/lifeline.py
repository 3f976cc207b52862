"""A connection from rank to rank that closes when a process dies: the rank that listens knows at once."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from distcnn.distributed.shutdown import watch_group

_NO_TIMEOUT = timedelta(days=3650)  # the one message comes at the end of the training
_PATIENCE_S = 10.0


class Lifeline:
    """Each rank listens, in a thread, for the message that the next rank sends at its end. If it dies, gloo raises.

    For ranks that wait for the device: NCCL's kernels tell nobody that another rank has gone. It costs nothing while it
    is not needed, and, unlike a look at processes, it reaches from host to host. A host that loses its power closes
    nothing: the Watchdog's heartbeats are for that.
    """

    def __init__(self, rank: int, size: int, lost: Callable[[int, str], None]):
        """A collective. `lost` is called, in the thread, with the rank that has gone, and gloo's message."""
        self.next, self.before, self.lost = (rank + 1) % size, (rank - 1) % size, lost
        self.group: Any = dist.new_group(backend="gloo", timeout=_NO_TIMEOUT)
        watch_group(self.group)
        self.listener = threading.Thread(target=self._listen, name="distcnn-lifeline", daemon=True)
        self.listener.start()

    def close(self) -> None:
        """Send the message, and wait for it. Called by all ranks, once none of them will fail any more."""
        dist.send(torch.zeros(1), dst=self.before, group=self.group)
        self.listener.join(_PATIENCE_S)

    def _listen(self) -> None:
        try:
            dist.recv(torch.zeros(1), src=self.next, group=self.group)
        except RuntimeError as error:
            self.lost(self.next, str(error).splitlines()[0])
