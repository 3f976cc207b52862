"""A rank's process is found on its own host only, never one that got its number later, and killed only if found."""

import subprocess
import sys
import time
from dataclasses import replace

import psutil

from distcnn.distributed.process import RankProcess, has_ended


def test_a_process_is_found_killed_and_seen_to_have_ended():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]) as child:
        process = psutil.Process(child.pid)
        one = replace(RankProcess.own(), pid=child.pid, born=process.create_time())
        for other in (replace(one, host="elsewhere"), replace(one, born=one.born - 10)):
            assert other.found() is None
            assert not other.kill()
        assert one.found() == process
        assert not has_ended(process)
        assert one.kill()
        while not has_ended(process):  # before anything has asked for its exit code
            time.sleep(0.01)
        child.wait()
    assert has_ended(process)
    assert one.found() is None
    assert not one.kill()
