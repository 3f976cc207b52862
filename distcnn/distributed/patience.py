"""Calls that may never return: into a library, or to another program over the network."""

import threading
import time
from collections.abc import Callable
from queue import Empty, Queue
from typing import Any, TypeVar

T = TypeVar("T")
_LOOK_S = 0.2


def patiently(work: Callable[[Callable[[str], None]], T], patience_s: float, complaint: str = "nothing moved") -> T:
    """What `work` returns or raises; TimeoutError, with `work` left behind in its thread, where that takes too long.

    The patience, in seconds, begins anew each time that `work` calls what it is given, with the name of the part it
    begins. The error says `complaint`, how long it was so, and in which part.
    """
    done: Queue[tuple[Any, Exception | None]] = Queue()
    moved = [(time.monotonic(), "")]

    def run() -> None:
        try:
            done.put((work(lambda part: moved.append((time.monotonic(), part))), None))
        except Exception as error:
            done.put((None, error))

    threading.Thread(target=run, name="distcnn-patience", daemon=True).start()
    while True:
        since, part = moved[-1]
        left = since + patience_s - time.monotonic()
        try:
            answer, error = done.get(timeout=max(0.0, min(left, _LOOK_S)))
        except Empty:
            if left <= 0:
                where = f" in {part}" if part else ""
                raise TimeoutError(f"{complaint} for {patience_s:g} s{where}") from None
            continue
        if error:
            raise error
        result: T = answer
        return result
