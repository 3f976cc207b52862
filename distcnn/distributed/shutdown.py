"""Exit with the process's own exit code, never by SIGABRT, while gloo's threads may still be running.

gloo's threads free the tensors of a collective, and with them Python objects, shortly after it has completed. If the
interpreter is being finalized by then, CPython before 3.14 ends such a thread by `pthread_exit` in the middle of a C++
destructor, and the C++ runtime aborts the process: "terminate called without an active exception"
(https://docs.python.org/3/c-api/init.html#c.PyGILState_Ensure). Destroying the group is not enough: any reference to
it, such as a DistributedDataParallel's, keeps the threads alive.
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
_LIMIT_S = 60  # of the interpreter's finalization, which normally takes a second or two
_LEFT_BEHIND = ("distcnn-tracker", "distcnn-timeout")  # threads that may be stuck in a call that never returns


def end_process(code: int) -> NoReturn:
    """Exit with `code` as the interpreter would, but without finalizing it. For the command line.

    Joins non-daemon threads, runs exit handlers and flushes open files. If the first two could block forever (a thread
    was abandoned, or the group of a failed run still exists), only a checkpoint being written is waited for.
    """
    stuck = any(thread.name.startswith(_LEFT_BEHIND) for thread in threading.enumerate())
    with suppress(KeyboardInterrupt):  # it ends the wait, but does not change the exit code
        if stuck or _group_exists():
            for thread in threading.enumerate():
                if thread.name == "distcnn-saver":
                    thread.join()
        else:  # what the interpreter does first when it exits
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
    # A user's own module may have open files. Text first: it is buffered before its bytes are.
    for kind in (io.TextIOWrapper, io.BufferedWriter):
        for file in [one for one in gc.get_objects() if issubclass(type(one), kind)]:
            with suppress(OSError, ValueError):  # closed, or a pipe without a reader
                file.flush()
    os._exit(code)


def watch_group(group: Any) -> None:
    """Let the process exit cleanly even if something still refers to this process group by then."""
    if not _groups:
        atexit.register(_before_finalization)
    _groups.append(weakref.ref(group))


def _before_finalization() -> None:
    """Make gloo's threads hang rather than abort while the interpreter of a Python program is finalized.

    That is what CPython itself does from 3.14 on. Groups that are still referred to are never freed: their destructors
    would wait for the threads. Does nothing with a C++ runtime other than that of Linux or macOS.
    """
    gc.collect()  # a reference cycle may hold a group; freeing it ends its threads cleanly
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
        # Anything else that would abort the process hangs now too, even the main thread: limit it.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_LIMIT_S)
        set_terminate(pause)


def _group_exists() -> bool:
    """Whether there is a process group, without importing torch."""
    dist = sys.modules.get("torch.distributed")
    return dist is not None and bool(dist.is_available() and dist.is_initialized())
