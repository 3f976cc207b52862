"""How a process ends while gloo's threads may still be at work: with its own exit code, never by SIGABRT.

gloo's threads free the tensors of an exchange, and with them Python objects, a moment after the exchange itself is
done. If the interpreter is being finalized by then, CPython before 3.14 ends such a thread by `pthread_exit` in the
middle of a C++ destructor, and the C++ runtime aborts the whole process: "terminate called without an active
exception" (https://docs.python.org/3/c-api/init.html#c.PyGILState_Ensure). A group that has been destroyed is not
enough: whoever refers to it, as a DistributedDataParallel does, keeps the threads alive.
"""

import atexit
import ctypes
import gc
import io
import os
import signal
import sys
import threading
import weakref
from contextlib import suppress
from typing import Any, NoReturn

_groups: "list[weakref.ref[Any]]" = []
_LIMIT_S = 60  # of the interpreter's end, whose own part takes a second or two
_LEFT_BEHIND = ("distcnn-tracker", "distcnn-patience")  # threads stuck in a library, or in a program that never answers


def end_process(code: int) -> NoReturn:
    """End the process with this exit code as the interpreter would, without finalizing it. For the command line.

    Threads that are not daemons are waited for, exit handlers run, and files that are still open are flushed. Where
    the first two could wait without end (a thread was left behind, or the group of a failed run still stands), only a
    checkpoint that is being written is waited for.
    """
    stuck = any(thread.name.startswith(_LEFT_BEHIND) for thread in threading.enumerate())
    with suppress(KeyboardInterrupt):  # it ends the wait, and is not what the code is about
        if stuck or _group_stands():
            for thread in threading.enumerate():
                if thread.name == "distcnn-saver":
                    thread.join()
        else:  # the first two things that the interpreter does when it ends
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
    # A user's own module may have a file open. Text first: it is in a buffer before it is in that of the bytes.
    for kind in (io.TextIOWrapper, io.BufferedWriter):
        for file in [one for one in gc.get_objects() if issubclass(type(one), kind)]:
            with suppress(OSError, ValueError):  # it may be closed, and whoever reads it may be gone
                file.flush()
    os._exit(code)


def watch_group(group: Any) -> None:
    """Let the process end in order although something may still refer to this process group then."""
    if not _groups:
        atexit.register(_before_finalization)
    _groups.append(weakref.ref(group))


def _before_finalization() -> None:
    """In a Python program, whose exit code is not known here, the interpreter ends as ever; gloo's threads hang.

    That is what CPython does by itself from 3.14 on. A group that is referred to is never freed: its destructor would
    wait for its threads. Where the C++ runtime is neither that of Linux nor that of macOS, nothing is changed.
    """
    gc.collect()  # a cycle may be all that holds a group; freeing it ends its threads in order
    held = [group for reference in _groups if (group := reference()) is not None]
    if not held:
        return
    for group in held:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
    if sys.version_info < (3, 14):
        try:
            set_terminate = ctypes.CDLL("libstdc++.so.6" if sys.platform == "linux" else None)._ZSt13set_terminatePFvvE
            pause = ctypes.cast(ctypes.CDLL(None).pause, ctypes.c_void_p)
        except (OSError, AttributeError):  # another C++ runtime
            return
        set_terminate.argtypes, set_terminate.restype = [ctypes.c_void_p], ctypes.c_void_p
        # Whatever else would abort the process hangs now too, the main thread even: not for longer than this.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_LIMIT_S)
        set_terminate(pause)


def _group_stands() -> bool:
    """Without importing torch where nothing has."""
    dist = sys.modules.get("torch.distributed")
    return dist is not None and bool(dist.is_available() and dist.is_initialized())
