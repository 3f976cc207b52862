"""Timeouts for calls that may never return: into a library, or to another program over the network."""

import threading
import time
from collections.abc import Callable
from queue import Empty, Queue
from typing import Any, TypeVar

T = TypeVar("T")
_POLL_S = 0.2


def call_with_timeout(
    work: Callable[[Callable[[str], None]], T], timeout_s: float, complaint: str = "nothing moved"
) -> T:
    """Run `work` in a thread and return or raise what it does; on a timeout raise TimeoutError and abandon the thread.

    `work` gets a function to call with the name of each part that it begins, which restarts the timeout. The error
    gives `complaint`, the seconds, and the part.
    """
    done: Queue[tuple[Any, Exception | None]] = Queue()
    parts = [(time.monotonic(), "")]

    def run() -> None:
        try:
            done.put((work(lambda part: parts.append((time.monotonic(), part))), None))
        except Exception as error:
            done.put((None, error))

    threading.Thread(target=run, name="distcnn-timeout", daemon=True).start()
    while True:
        since, part = parts[-1]
        left = since + timeout_s - time.monotonic()
        try:
            answer, error = done.get(timeout=max(0.0, min(left, _POLL_S)))
        except Empty:
            if left <= 0:
                where = f" in {part}" if part else ""
                raise TimeoutError(f"{complaint} for {timeout_s:g} s{where}") from None
            continue
        if error:
            raise error
        result: T = answer
        return result
