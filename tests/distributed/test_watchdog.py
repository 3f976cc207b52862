"""A rank that stops is named by the others, with its place, within train.timeout; nobody is left behind."""

import re
import signal
import time

import pytest

from distcnn.distributed.watchdog import Watchdog
from distcnn.distributed.world import World
from tests.distributed.long import ENDLESS
from tests.ranks import TIMEOUT, run_ranks, start, torchrun
from tests.records import steps

LONG = (*ENDLESS, "--train.timeout", "20")


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "victim"), [(4, 2), (2, 0)])
def test_a_stopped_rank_is_named_and_the_job_ends(synthetic, tmp_path, ranks, victim):
    """Of two, rank 0, which serves the store: it is silent too."""
    with start(["train", synthetic, *LONG], ranks, cwd=tmp_path) as started:
        started.until(lambda: steps(tmp_path / "runs" / "tiny"))
        started.until(lambda: len((tmp_path / "runs" / "tiny" / "metrics.jsonl").read_text()) > 5000)
        time.sleep(3)  # the ranks tell each other where they stand every second
        started[victim].send_signal(signal.SIGSTOP)
        codes, err = started.wait(), started.err()
    assert codes == [-signal.SIGKILL if rank == victim else 1 for rank in range(ranks)]
    assert err.count("distcnn: failed") == 1, err
    assert re.search(
        rf"rank {victim} on \S+, process \d+: no sign of life for \d+ s, last seen in [\w ]+ of step \d+, at\n", err
    )
    assert "in train_step" in err or "in fit" in err
    assert f"killed rank {victim}'s process" in err
    assert "Traceback" not in err


def test_a_rank_that_stops_before_its_first_heartbeat_is_known_all_the_same(synthetic, tmp_path):
    (tmp_path / "stops.py").write_text(
        "from distcnn.models.simple import SimpleCNN\nimport os, signal\n"
        "class Stops(SimpleCNN):\n"
        "    def forward(self, x):\n"
        "        if os.environ['RANK'] == '0' and x.device.type != 'meta':\n"
        "            os.kill(os.getpid(), signal.SIGSTOP)\n"
        "        return super().forward(x)\n"
    )
    train = ["train", synthetic, "--train.timeout", "10", "--model.name", "stops:Stops"]
    outcome = run_ranks(train, 2, cwd=tmp_path)
    assert outcome.codes == [-signal.SIGKILL, 1]
    assert re.search(
        r"rank 0 on \S+, process \d+: no sign of life for \d+ s, last seen in start of step 1", outcome.err
    )
    assert "killed rank 0's process" in outcome.err


def test_ranks_whose_agent_was_killed_end(synthetic, tmp_path):
    """torchrun's workers are in sessions of their own: nothing else ends them."""
    with start(["train", synthetic, *LONG], program=torchrun(1), cwd=tmp_path) as agent:
        agent.until(lambda: steps(tmp_path / "runs" / "tiny"))
        (rank,) = agent.children()
        agent[0].kill()
        assert rank.wait(TIMEOUT) is None  # not our child: only that it has ended is known
        assert "torchrun's agent has died" in agent.err()


def test_a_rank_that_dies_ends_the_others_without_their_tracebacks(synthetic, tmp_path):
    (tmp_path / "dies.py").write_text(
        "from distcnn.models.simple import SimpleCNN\nimport os\n"
        "class Dies(SimpleCNN):\n"
        "    def forward(self, x):\n"
        "        if os.environ['RANK'] == '1' and x.device.type != 'meta':\n"
        "            raise LookupError('planted')\n"
        "        return super().forward(x)\n"
    )
    outcome = run_ranks(["train", synthetic, "--model.name", "dies:Dies"], 3, cwd=tmp_path)
    assert outcome.codes == [1, 1, 1]
    assert outcome.err.count("Traceback") == 1
    assert "LookupError: planted" in outcome.err
    assert outcome.err.count("Lost contact with another rank during a collective") == 2


def test_one_rank_alone_may_take_its_time():
    with Watchdog(World(), None, 0.01, end=pytest.fail) as watch:
        assert list(watch.each("ab", "evaluation")) == ["a", "b"]
        assert (watch.phase, watch.phase_count) == ("evaluation", 2)
        watch.done.wait(0.2)
        watch.steps_done(7)
    assert (watch.step, watch.phase_count) == (7, 0)
