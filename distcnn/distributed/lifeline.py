"""A connection from each rank to the next that closes when a process dies, so that its peer knows at once."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from distcnn.distributed.shutdown import watch_group

_NO_TIMEOUT = timedelta(days=3650)  # its only message is sent at the end of the training
_CLOSE_TIMEOUT_S = 10.0


class Lifeline:
    """Waits, in a thread, for the message that the next rank sends when it leaves. If that rank dies, gloo raises.

    For ranks that wait for a GPU: NCCL's kernels do not report a lost rank. It costs nothing while idle and, unlike
    polling processes, works across hosts. A host that loses power closes nothing: that is left to the heartbeats.
    """

    def __init__(self, rank: int, size: int, lost: Callable[[int, str], None]):
        """Connect the ranks. A collective. `lost` is called in the thread, with the lost rank and gloo's message."""
        self.next, self.before, self.lost = (rank + 1) % size, (rank - 1) % size, lost
        self.group: Any = dist.new_group(backend="gloo", timeout=_NO_TIMEOUT)
        watch_group(self.group)
        self.listener = threading.Thread(target=self._listen, name="distcnn-lifeline", daemon=True)
        self.listener.start()

    def close(self) -> None:
        """Send the message and receive the next rank's. Called by all ranks, once none can fail any more."""
        dist.send(torch.zeros(1), dst=self.before, group=self.group)
        self.listener.join(_CLOSE_TIMEOUT_S)

    def _listen(self) -> None:
        try:
            dist.recv(torch.zeros(1), src=self.next, group=self.group)
        except RuntimeError as error:
            self.lost(self.next, str(error).splitlines()[0])
