"""Train each trial in its own process, one per device at a time."""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distcnn.distributed.cores import cores
from distcnn.distributed.signals import catching_signals, stopped
from distcnn.trials.plan import Trial, result
from distcnn.trials.visible_gpus import places

_POLL_S = 0.05


@dataclass(frozen=True)
class _Running:
    trial: Trial
    gpu: str | None  # as CUDA_VISIBLE_DEVICES names it
    started: float  # time.monotonic()
    process: "subprocess.Popen[bytes]"


def run_trials(trials: Sequence[Trial], overrides: list[str], parallel: int | None) -> list[str]:
    """Train each trial on the next free device, `parallel` at once, by default one per GPU; print its accuracy.

    Returns the trials that failed, and why. A signal is forwarded to the running trials, which save and end; then
    StoppedError is raised.
    """
    if not trials:
        return []
    config = trials[0].config
    gpus = 0 if config.train.device == "cpu" else torch.cuda.device_count()
    free = deque(places(os.environ.get("CUDA_VISIBLE_DEVICES"), gpus, parallel))
    if free[0] is None and len(free) > 1 and config.train.threads is None:
        overrides = [*overrides, "--train.threads", f"{max(1, cores() // len(free))}"]
    waiting, running, failed = deque(trials), list[_Running](), list[str]()
    forwarded = False
    with catching_signals() as asked:
        asked.defer()
        try:
            while running or (waiting and not asked.number):
                while waiting and free and not asked.number:
                    running.append(_start(waiting.popleft(), overrides, free.popleft()))
                if asked.number and not forwarded:
                    forwarded = True
                    for one in running:  # each saves and ends
                        one.process.send_signal(asked.number)
                time.sleep(_POLL_S)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    free.append(one.gpu)
                    if not asked.number:
                        failed += _ended(one)
        finally:
            for one in running:
                one.process.terminate()
    if asked.number:
        raise stopped(asked.number, "before all trials were done; the same command continues")
    return failed


def _start(trial: Trial, overrides: list[str], gpu: str | None) -> _Running:
    own = any(word.startswith("--tracking.group") for word in overrides)
    group = () if own else ("--tracking.group", trial.group)
    command = [
        sys.executable, "-m", "distcnn", "train", str(trial.path), "--checkpoint.resume", "auto", *overrides,
        "--seed", f"{trial.config.seed}", "--name", trial.name, *group,
    ]  # fmt: skip
    environment = os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
    trial.log.parent.mkdir(parents=True, exist_ok=True)
    with trial.log.open("ab") as output:  # in a new session, so that Ctrl-C reaches it only once, through this process
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    return _Running(trial, gpu, time.monotonic(), process)


def _ended(one: _Running) -> list[str]:
    """Print how a trial ended; return its failure, if any."""
    name, log, code, found = one.trial.name, one.trial.log, one.process.returncode, result(one.trial)
    if code or not found:
        print(f"{name}: failed with exit code {code}; its output is in {log}", flush=True)
        return [f"{name} (exit code {code}, see {log})"]
    print(f"{name}: {found['accuracy']:.2%} in {time.monotonic() - one.started:.0f} s", flush=True)
    return []
