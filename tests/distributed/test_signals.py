"""A signal to any one rank stops all of them at the same step, saved; the run goes on from there without a seam."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from queue import Queue

import pytest
from conftest import TIMEOUT, clean_environment, events, free_port, metrics, run_ranks

from distcnn.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, Stopped
from distcnn.parallel.signals import CAUGHT, catching_signals

RARELY = ("--eval.every", "1000ep", "--checkpoint.every", "1000ep", "--train.threads", "1", "--tracking.log_every", "3",
          "--optim.name", "adamw", "--optim.lr", "0.001")  # fmt: skip
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


@contextmanager
def started(tmp_path, arguments, ranks=1, **options):
    """Processes to send signals to; their stderr is in err0, err1, …"""
    world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} if ranks > 1 else {}
    processes = []
    for rank in range(ranks):
        own = clean_environment() | world | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {})
        with (tmp_path / f"err{rank}").open("w") as err:
            command = [sys.executable, "-m", "distcnn", *map(str, arguments)]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": err}
            processes.append(subprocess.Popen(command, cwd=tmp_path, env=own, **(quiet | options)))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def until(condition, process):
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)


def trains(folder):
    return (folder / "metrics.jsonl").exists() and '"train"' in (folder / "metrics.jsonl").read_text()


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
    with started(tmp_path, [*train, "--train.duration", "100000step"], ranks) as processes:
        until(lambda: trains(folder), processes[0])
        processes[signalled].send_signal(signal.Signals[name])
        assert [process.wait(TIMEOUT) for process in processes] == [code] * ranks
    err = "".join((tmp_path / f"err{rank}").read_text() for rank in range(ranks))
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
    return started(config.parent, ["train", config, "--model.name", f"stuck:{where}"], **options)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", EXIT_PREEMPTED), ("SIGINT", EXIT_INTERRUPTED)])
def test_a_signal_before_training_ends_the_process_where_it_stands(synthetic, tmp_path, name, code):
    with stuck(synthetic, "in_the_making") as (process,):
        until((tmp_path / "stuck").exists, process)
        process.send_signal(signal.Signals[name])
        assert process.wait(TIMEOUT) == code
    title, message = (tmp_path / "err0").read_text().splitlines()
    assert title == "distcnn: stopped"
    assert message == f"  stopped by {name} before the first step, with nothing to save; exit code {code}"
    assert not (tmp_path / "runs").exists()


def test_a_signal_when_nobody_reads_its_output_any_more(synthetic, tmp_path):
    """As of ranks whose launcher was killed."""
    with stuck(synthetic, "in_the_making", stderr=subprocess.PIPE) as (process,):
        until((tmp_path / "stuck").exists, process)
        process.stderr.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == EXIT_PREEMPTED


def test_a_second_interrupt_ends_at_once(synthetic, tmp_path):
    """In a step that does not end, the first one is only noted."""
    with stuck(synthetic, "in_a_step") as (process,):
        until((tmp_path / "stuck").exists, process)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == EXIT_INTERRUPTED
    assert (tmp_path / "err0").read_text() == "distcnn: stopped\n  stopped by SIGINT a second time; exit code 130\n"
    assert not (tmp_path / "runs" / "tiny" / "checkpoints").exists()


def test_a_signal_while_the_other_rank_is_awaited(synthetic, tmp_path):
    with started(tmp_path, ["train", synthetic], 2) as (first, second):
        second.kill()
        until(lambda: "has waited" in (tmp_path / "err0").read_text(), first)
        first.send_signal(signal.SIGTERM)
        assert first.wait(TIMEOUT) == EXIT_PREEMPTED
    assert "stopped by SIGTERM before the first step" in (tmp_path / "err0").read_text()
    assert not (tmp_path / "runs").exists()


def test_a_second_interrupt_in_a_collective(synthetic, tmp_path):
    """The other rank does not answer, and this one stands in an exchange with it, or soon will."""
    with started(tmp_path, ["train", synthetic, *RARELY, "--train.duration", "100000step"], 2) as (first, second):
        until(lambda: trains(tmp_path / "runs" / "tiny"), first)
        second.send_signal(signal.SIGSTOP)
        first.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            first.wait(2)
        first.send_signal(signal.SIGINT)
        assert first.wait(TIMEOUT) == EXIT_INTERRUPTED


def test_a_signal_to_the_group_leaves_the_data_workers_to_their_rank(synthetic, tmp_path):
    """As Ctrl-C, and Slurm's to a step."""
    train = ["train", synthetic, "--train.duration", "100000step", "--data.loader", "streaming", "--data.workers", "2"]
    with started(tmp_path, [*train, *RARELY], start_new_session=True) as (process,):
        until(lambda: trains(tmp_path / "runs" / "tiny"), process)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(TIMEOUT) == EXIT_PREEMPTED
    assert "which is saved; exit code 75" in (tmp_path / "err0").read_text()


def test_handlers_are_put_back():
    """Before `begin` a signal ends the process, after it it is noted; in the end the old handlers come back."""
    before = [signal.getsignal(number) for number in CAUGHT]
    ends: Queue[Stopped] = Queue()
    with catching_signals(ends.put) as stop:
        assert all(signal.getsignal(number) != old for number, old in zip(CAUGHT, before, strict=True))
        signal.raise_signal(signal.SIGUSR1)
        end = ends.get(timeout=TIMEOUT)
        assert "SIGUSR1 before the first step" in str(end)
        assert end.exit_code == EXIT_PREEMPTED
        stop.number = 0
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
