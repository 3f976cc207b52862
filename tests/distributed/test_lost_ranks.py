"""A rank whose process is gone is named by the others within seconds, wherever they stand: train.timeout is 600 s here.

The GPU is a pretended one (see pretend_device.py), whose rank waits for it as for one in which a NCCL kernel waits for
the dead rank: without end.
"""

import re
from pathlib import Path

import pytest

from distcnn.checkpoint.file import Checkpoints
from tests.distributed.long import RARELY
from tests.ranks import start
from tests.records import metrics

PROGRAM = [Path(__file__).with_name("pretend_device.py")]
SECONDS = 100  # far below 0.8 of train.timeout, where the Watchdog's patience ends


def training(synthetic, tmp_path, ranks, pretend, duration="9step", *settings):
    arguments = ["train", synthetic, *RARELY, "--train.duration", duration, "--train.timeout", "600", *settings]
    return start(arguments, ranks, PROGRAM, tmp_path, PRETEND=pretend)


def killed(synthetic, tmp_path, ranks, pretend, victim):
    """The output, after all that were not killed have ended with 1."""
    with training(synthetic, tmp_path, ranks, pretend) as started:
        started.until(lambda: started.err().count("logs") == ranks)
        started[victim].kill()
        codes = started.wait(SECONDS)
        err = started.err()
    assert codes == [-9 if rank == victim else 1 for rank in range(ranks)], err
    assert "Traceback" not in err
    return err


GONE = r"rank {0} of {1} on \S+, process \d+, is gone: {2}"


@pytest.mark.parametrize("where", ["stuck=0", "stuck=0 late=1"], ids=["past its wait", "before its wait"])
@pytest.mark.parametrize(("hidden", "how"), [("", ""), (" hidden", r"\[.*Connection closed by peer")])
def test_a_rank_that_waits_for_its_device_hears_of_a_death(synthetic, tmp_path, where, hidden, how):
    err = killed(synthetic, tmp_path, 2, where + hidden, victim=1)
    assert re.search(GONE.format(1, 2, how), err), err
    (failed,) = [line for line in metrics(tmp_path / "runs" / "tiny", "event") if line["event"] == "failed"]
    assert re.match(rf"LostRankError: {GONE.format(1, 2, how)}", failed["message"])


def test_a_rank_that_does_not_listen_to_the_dead_one_learns_it_through_the_store(synthetic, tmp_path):
    """Rank 0 listens to rank 1, rank 1 to rank 2, and rank 2, which stands here, to rank 0."""
    err = killed(synthetic, tmp_path, 3, "stuck=2 late=0 hidden", victim=1)
    assert len(re.findall(GONE.format(1, 3, ""), err)) == 1, err  # by rank 0, which has found it
    assert not re.search(GONE.format("[02]", 3, ""), err)
    assert err.count("distcnn: failed") == 1


def test_the_death_of_the_rank_that_serves_the_store(synthetic, tmp_path):
    err = killed(synthetic, tmp_path, 3, "stuck=1 late=2 hidden", victim=0)
    assert re.search(GONE.format(0, 3, r"\[.*Connection closed by peer"), err), err


@pytest.mark.parametrize("pretend", ["cpu late=0", "late=0"])
def test_a_rank_that_stands_somewhere_else_is_ended(synthetic, tmp_path, pretend):
    """Its main thread can hear of nothing: it sleeps."""
    err = killed(synthetic, tmp_path, 2, pretend, victim=1)
    assert re.search(GONE.format(1, 2, ""), err), err
    assert re.search(r"rank 0 of 2 on \S+ has been in log of step 4 for \d+ s \(train.timeout = 600\)", err)
    assert ("the host has issued step 3, the device has done step 3" in err) == ("cpu" not in pretend)
    (failed,) = [line for line in metrics(tmp_path / "runs" / "tiny", "event") if line["event"] == "failed"]
    assert re.match(GONE.format(1, 2, r".*; rank 0 of 2 on \S+ has been in log"), failed["message"])


@pytest.mark.parametrize("pretend", ["cpu saves=6", "saves=6"])
def test_what_is_being_written_when_another_rank_dies_is_written(synthetic, tmp_path, pretend):
    """Rank 0 stands still for its own disk, and then comes to an exchange: the log has its end too."""
    with training(synthetic, tmp_path, 2, pretend, "4step") as started:
        started.until(lambda: "rank 0 saves" in started.err())
        started[1].kill()
        codes, err = started.wait(SECONDS), started.err()
    assert codes == [1, -9], err
    folder = tmp_path / "runs" / "tiny"
    newest, damaged = Checkpoints(folder / "checkpoints").newest_valid()
    assert (newest and newest.path.name, damaged) == ("step-00000004.pt", []), err
    assert [line["event"] for line in metrics(folder, "event")][-1] == "failed"


@pytest.mark.parametrize("pretend", ["leaves=3", "cpu leaves=3"])
def test_nobody_is_accused_at_a_normal_end(synthetic, tmp_path, pretend):
    """One stands still for 6 s at its end, and of the next exchange, rank 0's weights, another one has no need of it."""
    with training(synthetic, tmp_path, 4, pretend, "4step") as started:
        codes, err = started.wait(), started.err()
    assert codes == [0] * 4, err
    assert "is gone" not in err


def test_the_device_is_timed_without_changing_a_loss(synthetic, tmp_path):
    """Its time says which rank is slow, whatever the hosts do; what it has done at once, the host is too slow for."""
    for name in ("cpu", "slow=1"):
        with training(synthetic, tmp_path, 2, name, "20step", "--tracking.log_every", "1") as started:
            assert started.wait() == [0, 0], started.err()
            assert ("host bound: the GPU" in started.out(0)) == (name != "cpu")
        (tmp_path / "runs" / "tiny").rename(tmp_path / name)
    one, other = (metrics(tmp_path / name, "train") for name in ("cpu", "slow=1"))
    assert [line["loss"] for line in one] == [line["loss"] for line in other]
    assert [line["slowest_rank"] for line in other[2:]] == [1] * 18
    events = [[line["event"] for line in metrics(tmp_path / name, "event")] for name in ("cpu", "slow=1")]
    assert [names.count("host_bound") for names in events] == [0, 1]


def test_the_rank_whose_device_spins_is_named(synthetic, tmp_path):
    """Both hosts have gone on to where they wait for their device, and both devices have done step 3."""
    with training(synthetic, tmp_path, 2, "spins=1", "9step", "--train.timeout", "10") as started:
        codes, err = started.wait(SECONDS), started.err()
    assert codes == [1, 1], err
    assert "rank 0 of 2 on" in err
    assert "the device has done step 3 and is waiting for the all-reduce of the gradients of step 4), at" not in err
    assert re.search(
        r"rank 1 on \S+, process \d+: alive, but behind the others, in log of step 7 \(the host has issued step 6, the "
        r"device has done step 3 and has not finished the gradients of step 4\), at\n",
        err,
    ), err
    assert not re.search(r"rank 0 on \S+, process", err)


@pytest.mark.slow
def test_the_report_says_how_far_the_device_is_and_what_nccl_waits_for(synthetic, tmp_path):
    with training(synthetic, tmp_path, 2, "stuck=0 late=1 nccl", "9step", "--train.timeout", "20") as started:
        codes, err = started.wait(SECONDS), started.err()
    assert codes == [1, 1], err
    assert re.search(r"rank [01] of 2 on \S+ has been in log of step 4 for 1\d s", err), err
    assert "(the host has issued step 3, the device has done step 3)" in err
    assert (
        "NCCL's collective 8 of group 0, all_reduce [[5]], has not ended; begun on rank 0, not on rank 1 (rank 1's"
        in err
    )
    found = sorted(path.name for path in (tmp_path / "runs" / "tiny").glob("nccl_trace_rank*.json"))
    assert found == ["nccl_trace_rank0.json", "nccl_trace_rank1.json"]
