"""A signal to any one rank stops all of them at the same step, saved; the run goes on from there without a seam."""

import os
import re
import signal
import subprocess
import time
from queue import Queue

import pytest

from distcnn.distributed.signals import CAUGHT, catching_signals
from distcnn.distributed.stop import StopRequest
from distcnn.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, StoppedError
from tests.distributed.long import ENDLESS, RARELY
from tests.ranks import TIMEOUT, run_ranks, start
from tests.records import events, metrics, steps

STUCK = """
import pathlib, time
from distcnn.models.simple import SimpleCNN

def wait():
    pathlib.Path("stuck").touch()
    time.sleep(1000)

def in_the_making(num_classes):
    wait()

def in_a_step(num_classes, image_size):
    model = SimpleCNN(num_classes, image_size)
    model.register_forward_hook(lambda _, images, __: wait() if images[0].device.type != "meta" else None)
    return model
"""


def numbers(folder):
    return [(line["step"], line["loss"], line["lr"]) for line in metrics(folder, "train")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "signalled", "name", "code"),
    [
        (1, 0, "SIGUSR1", EXIT_PREEMPTED),
        (2, 1, "SIGTERM", EXIT_PREEMPTED),
        (3, 2, "SIGUSR2", EXIT_PREEMPTED),
        (2, 0, "SIGINT", EXIT_INTERRUPTED),
    ],
)
def test_one_signal_stops_all_ranks_at_one_step(synthetic, tmp_path, ranks, signalled, name, code):
    train, folder = ["train", synthetic, *RARELY], tmp_path / "runs" / "tiny"
    with start(["train", synthetic, *ENDLESS], ranks, cwd=tmp_path) as started:
        started.until(lambda: steps(folder))
        started[signalled].send_signal(signal.Signals[name])
        assert started.wait() == [code] * ranks
        err = started.err()
    (step,) = map(int, re.findall(rf"stopped by {name} after step (\d+) of 100000, which is saved", err))
    assert err.count("distcnn: stopped") == 1
    assert "Traceback" not in err
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step-{step:08d}.pt"]
    assert [line["step"] for line in metrics(folder, "train")] == [*range(1, step + 1)]
    assert [(line["event"], line["step"]) for line in events(folder)] == [("stopped", step)]
    assert not (folder / "model.safetensors").exists()

    # The same command goes on, and ends where a run that nobody stopped does, to the bit.
    further = ["--train.duration", f"{step + 5}step", "--checkpoint.resume", "auto"]
    for run in ("tiny", "straight"):
        outcome = run_ranks([*train, *further, "--name", run], ranks)
        assert outcome.codes == [0] * ranks, outcome.err
    straight = folder.with_name("straight")
    assert [line["step"] for line in metrics(folder, "train")] == [*range(1, step + 6)]
    assert [line["event"] for line in events(folder)] == ["stopped", "resumed"]
    assert numbers(folder) == numbers(straight)
    assert (folder / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


def stuck(config, where, **options):
    (config.parent / "stuck.py").write_text(STUCK)
    return start(["train", config, "--model.name", f"stuck:{where}"], cwd=config.parent, **options)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", EXIT_PREEMPTED), ("SIGINT", EXIT_INTERRUPTED)])
def test_a_signal_before_training_ends_the_process_where_it_stands(synthetic, tmp_path, name, code):
    with stuck(synthetic, "in_the_making") as ranks:
        ranks.until((tmp_path / "stuck").exists)
        ranks[0].send_signal(signal.Signals[name])
        assert ranks.wait() == [code]
        title, message = ranks.err().splitlines()
    assert title == "distcnn: stopped"
    assert message == f"  stopped by {name} before the first step, with nothing to save; exit code {code}"
    assert not (tmp_path / "runs").exists()


def test_a_signal_when_nobody_reads_its_output_any_more(synthetic, tmp_path):
    """As of ranks whose launcher was killed."""
    reader, writer = os.pipe()
    with stuck(synthetic, "in_the_making", stderr=writer) as ranks:
        os.close(writer)
        ranks.until((tmp_path / "stuck").exists)
        os.close(reader)
        ranks[0].send_signal(signal.SIGTERM)
        assert ranks.wait() == [EXIT_PREEMPTED]


def test_a_second_interrupt_ends_at_once(synthetic, tmp_path):
    """In a step that does not end, the first one is only noted."""
    with stuck(synthetic, "in_a_step") as ranks:
        ranks.until((tmp_path / "stuck").exists)
        ranks[0].send_signal(signal.SIGINT)
        with pytest.raises(TimeoutError):
            ranks.wait(1)
        ranks[0].send_signal(signal.SIGINT)
        assert ranks.wait() == [EXIT_INTERRUPTED]
        assert ranks.err() == "distcnn: stopped\n  stopped by SIGINT a second time; exit code 130\n"
    assert not (tmp_path / "runs" / "tiny" / "checkpoints").exists()


def test_a_signal_while_the_other_rank_is_awaited(synthetic, tmp_path):
    with start(["train", synthetic], 2, cwd=tmp_path) as ranks:
        ranks[1].kill()
        ranks.until(lambda: "has waited" in ranks.err(0), rank=0)
        ranks[0].send_signal(signal.SIGTERM)
        assert ranks.wait()[0] == EXIT_PREEMPTED
        assert "stopped by SIGTERM before the first step" in ranks.err(0)
    assert not (tmp_path / "runs").exists()


def test_a_second_interrupt_in_a_collective(synthetic, tmp_path):
    """The other rank does not answer, and this one stands in an exchange with it, or soon will."""
    with start(["train", synthetic, *ENDLESS], 2, cwd=tmp_path) as ranks:
        ranks.until(lambda: steps(tmp_path / "runs" / "tiny"))
        ranks[1].send_signal(signal.SIGSTOP)
        ranks[0].send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            ranks[0].wait(2)
        ranks[0].send_signal(signal.SIGINT)
        assert ranks[0].wait(TIMEOUT) == EXIT_INTERRUPTED


def test_a_signal_to_the_group_leaves_the_data_workers_to_their_rank(synthetic, tmp_path):
    """As Ctrl-C, and Slurm's to a step."""
    train = ["train", synthetic, *ENDLESS, "--data.loader", "streaming", "--data.workers", "2"]
    with start(train, cwd=tmp_path, start_new_session=True) as ranks:
        ranks.until(lambda: steps(tmp_path / "runs" / "tiny"))
        os.killpg(ranks[0].pid, signal.SIGTERM)
        assert ranks.wait() == [EXIT_PREEMPTED]
        assert "which is saved; exit code 75" in ranks.err()


def test_handlers_are_put_back():
    """Before `begin` a signal ends the process, after it it is noted; in the end the old handlers come back."""
    before = [signal.getsignal(number) for number in CAUGHT]
    ends: Queue[StoppedError] = Queue()
    with catching_signals(ends.put) as received:
        stop = StopRequest(received)
        assert all(signal.getsignal(number) != old for number, old in zip(CAUGHT, before, strict=True))
        signal.raise_signal(signal.SIGUSR1)
        end = ends.get(timeout=TIMEOUT)
        assert "SIGUSR1 before the first step" in str(end)
        assert end.exit_code == EXIT_PREEMPTED
        received.number = 0
        stop.begin(timeout_s=1)
        assert stop.agreed() == (0, False)
        signal.raise_signal(signal.SIGTERM)
        deadline = time.monotonic() + TIMEOUT
        while not stop.agreed()[0]:
            assert time.monotonic() < deadline
        assert stop.agreed(save=True) == (signal.SIGTERM, True)
    assert ends.empty()
    assert [signal.getsignal(number) for number in CAUGHT] == before
    assert signal.set_wakeup_fd(-1) == -1
