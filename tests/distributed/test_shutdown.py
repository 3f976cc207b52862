"""Ranks that end while gloo's threads are still at work: each with its own exit code, never by SIGABRT."""

import pytest

from tests.ranks import run_ranks

# A DistributedDataParallel and a group that outlive the `with` block, and exchanges that nobody waits for.
PROGRAM = """
import os, sys
import torch
import torch.distributed as dist
from distcnn.distributed.rendezvous import process_group
from distcnn.distributed.stop import StopRequest
from distcnn.distributed.world import world_from

with process_group(world_from(os.environ), device=torch.device("cpu"), timeout_s=60):
    stop = StopRequest()
    stop.begin(60)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
    model(torch.ones(2, 4)).sum().backward()
    works = [dist.all_reduce(torch.ones(50_000), async_op=True, group=stop.group) for _ in range(300)]
    works[5].wait()
    del works
    {inside}
{after}
"""


@pytest.mark.parametrize(
    ("inside", "after", "code"),
    [
        ("pass", "sys.exit(3)", 3),  # a Python program: the interpreter ends by itself
        ("raise RuntimeError('of the user')", "", 1),  # the group still stands
        ("pass", "from distcnn.distributed.shutdown import end_process; end_process(75)", 75),  # the command line
    ],
    ids=["program", "exception", "command"],
)
def test_exchanges_under_way_do_not_change_the_exit_code(tmp_path, inside, after, code):
    """Of 12 such ranks without distcnn/distributed/shutdown.py, 3 to 6 are by SIGABRT."""
    script = tmp_path / "script.py"
    script.write_text(PROGRAM.format(inside=inside, after=after))
    for _ in range(2):
        outcome = run_ranks([], 3, program=[script], PYTHONPATH=".")
        assert outcome.codes == [code] * 3, outcome.err
        assert "terminate called" not in outcome.err


def test_a_command_ends_as_the_interpreter_would(tmp_path):
    """Exit handlers run, threads are waited for, and what a user's own module has not flushed is written."""
    script = tmp_path / "script.py"
    script.write_text(
        "import atexit, concurrent.futures, sys, threading, time\n"
        "from distcnn.distributed.shutdown import end_process\n"
        "atexit.register(print, 'handler')\n"
        "threading.Thread(target=lambda: (time.sleep(0.3), print('thread'))).start()\n"
        "pool = concurrent.futures.ThreadPoolExecutor(1)\n"  # its thread ends when the interpreter asks it to
        "pool.submit(print, 'pool')\n"
        "file = open(sys.argv[1], 'w')\n"
        "file.write('text')\n"
        "end_process(5)\n"
    )
    outcome = run_ranks([tmp_path / "file"], program=[script], PYTHONPATH=".")
    assert (tmp_path / "file").read_text() == "text"
    assert (outcome.codes, sorted(outcome.out.split())) == ([5], ["handler", "pool", "thread"]), outcome.err


@pytest.mark.slow
def test_every_command_ends_in_order_on_three_ranks():
    """A few times; `make ends` does it some hundred times."""
    outcome = run_ranks(["--n", "2", "--ranks", "3", "--busy", "1"], program=["-m", "tests.ends"])
    assert outcome.codes == [0], outcome.out + outcome.err
    assert outcome.out.count("6 with exit code") == 6
