"""Chaos: one fault a trial, at a random moment of a short training; then it is resumed, and compared to the bit.

    python -m tests.chaos --trials 200 --seed 0 --out docs/chaos.md        (make chaos)

Every trial trains on 1, 2 or 3 ranks (real processes), is hit by one fault, has to end as promised (exit code, within
a bound, no process left), and is then started again by the same command until it is done. Its final weights and its
history must be those of a training that nothing has hit, to the bit.
"""

import argparse
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil
import torch

from tests.ranks import Ranks, start, torchrun
from tests.records import metrics, steps, weights

STEPS = 24
TIMEOUT_S = 20  # train.timeout
BOUND_S = 90  # a trial's run that takes longer hangs
CONFIG = """
data: {source: synthetic, args: {train: 500, test: 101}, image_size: 16,
       augment: [{crop: {padding: 2}}, flip]}
model: {name: "tests.chaos_faults:Net"}
optim: {name: adamw, lr: 0.003}
schedule: {name: cosine}
eval: {every: 8step}
"""


@dataclass
class Trial:
    """One run folder, and what happened to it."""

    home: Path
    ranks: int
    chance: random.Random
    launcher: str = "bare"
    arguments: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    workers: list[psutil.Process] = field(default_factory=list)  # torchrun's

    @property
    def run(self) -> Path:
        return self.home / "runs" / "chaos"

    def command(self) -> list[str]:
        return [
            "train", str(self.home / "chaos.yaml"), "--checkpoint.resume", "auto",
            "--output_dir", str(self.home / "runs"), "--train.duration", f"{STEPS}step", "--train.batch_size", "240",
            "--train.micro_batch", "40", "--train.threads", "1", "--train.timeout", str(TIMEOUT_S),
            "--checkpoint.every", "3step", "--tracking.log_every", "1", "--tracking.console", "false",
            "--tracking.wandb", "disabled", *self.arguments,
        ]  # fmt: skip

    @contextmanager
    def started(self, **environment: str) -> Iterator[Ranks]:
        """The ranks as processes; whatever is left of them in the end is a failure of the trial, and killed."""
        shared = self.environment | environment
        shared["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        by_torchrun = self.launcher == "torchrun"
        program = torchrun(self.ranks) if by_torchrun else ("-m", "distcnn")
        self.workers = []
        with start(self.command(), 1 if by_torchrun else self.ranks, program, self.home, **shared) as ranks:
            try:
                yield ranks
            finally:
                ranks.close()
                self.outputs.append(ranks.out() + ranks.err())

    def until_step(self, ranks: Ranks, step: int) -> None:
        """Wait until so many steps are logged, or it has ended."""
        end = time.monotonic() + BOUND_S
        while steps(self.run) < step and ranks[0].poll() is None:
            assert time.monotonic() < end, "it did not begin to train"
            time.sleep(0.02)
        ranks.alive()  # notes whom the ranks have started, who must not outlive them
        if self.launcher == "torchrun":
            self.workers = ranks.children()

    def victim(self, ranks: Ranks) -> subprocess.Popen[bytes] | psutil.Process:
        """One of the ranks."""
        return self.chance.choice(self.workers or ranks.processes)

    def end(self, ranks: Ranks) -> list[int]:
        """The exit codes, when all have ended."""
        deadline = time.monotonic() + BOUND_S
        try:
            codes = ranks.wait(BOUND_S)
        except TimeoutError:
            raise AssertionError("it hangs") from None
        while left := ranks.alive():
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.1)
        return codes


def history(run: Path) -> list[tuple[object, ...]]:
    keys = ("kind", "step", "epoch", "loss", "lr", "correct", "total")
    return [tuple(line.get(key) for key in keys) for line in metrics(run) if line["kind"] != "event"]


# --- the faults: each does its harm, and checks that the run has ended as promised ------------------------------


def failed(codes: list[int]) -> None:
    assert any(codes), f"exit codes {codes}"
    assert 0 not in codes, f"a rank went on alone: {codes}"


def sigkill_of_a_rank(trial: Trial) -> None:
    with trial.started() as ranks:
        trial.until_step(ranks, trial.chance.randrange(STEPS - 2))
        trial.victim(ranks).kill()
        failed(trial.end(ranks))


def sigkill_of_the_launcher(trial: Trial) -> None:
    trial.launcher = "torchrun"
    with trial.started() as ranks:
        trial.until_step(ranks, trial.chance.randrange(1, STEPS - 2))
        ranks.processes[0].kill()
        failed(trial.end(ranks))


def sigstop_of_a_rank(trial: Trial) -> None:
    trial.ranks = max(2, trial.ranks)
    with trial.started() as ranks:
        trial.until_step(ranks, trial.chance.randrange(1, STEPS // 2))
        victim = trial.victim(ranks)
        rank = ranks.processes.index(victim)
        victim.send_signal(signal.SIGSTOP)
        failed(trial.end(ranks))
    assert f"rank {rank} on" in trial.outputs[-1], f"rank {rank} is not named"
    assert "no sign of life" in trial.outputs[-1]


def sigterm_to_a_rank(trial: Trial) -> None:
    trial.launcher = trial.chance.choice(["bare", "torchrun"])
    with trial.started() as ranks:
        trial.until_step(ranks, trial.chance.randrange(STEPS - 3))
        trial.victim(ranks).send_signal(signal.SIGTERM)
        codes = trial.end(ranks)
    ended = steps(trial.run) == STEPS  # it came too late
    assert ended or set(codes) <= ({1} if trial.launcher == "torchrun" else {75, -15}), f"exit codes {codes}"


def kill_during_a_save(trial: Trial) -> None:
    with trial.started(CHAOS=f"save:0:{trial.chance.randrange(1, 50)}") as ranks:
        failed(trial.end(ranks))


def damaged(trial: Trial, harm: Callable[[bytes], bytes]) -> None:
    with trial.started() as ranks:
        trial.until_step(ranks, trial.chance.randrange(8, STEPS - 2))
        trial.victim(ranks).kill()
        failed(trial.end(ranks))
    newest = max((trial.run / "checkpoints").glob("step-*.pt"))
    newest.write_bytes(harm(newest.read_bytes()))


def truncated_checkpoint(trial: Trial) -> None:
    damaged(trial, lambda data: data[: trial.chance.randrange(len(data))])


def bit_flipped_checkpoint(trial: Trial) -> None:
    def flip(data: bytes) -> bytes:
        at = trial.chance.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << trial.chance.randrange(8)]) + data[at + 1 :]

    damaged(trial, flip)


def full_disk(trial: Trial) -> None:
    """A file system of its own, which something else fills; in half of the trials there is room again before the end."""
    runs = trial.home / "runs"
    runs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", runs], check=True)
    try:
        filler, again = runs / "filler", trial.chance.random() < 0.5
        with trial.started() as ranks:
            trial.until_step(ranks, trial.chance.randrange(1, STEPS // 3))
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass
            if again:
                time.sleep(0.5)
                filler.unlink()
            codes = trial.end(ranks)
        assert set(codes) <= {0, 1}, f"exit codes {codes}"
        if set(codes) == {1}:
            assert "could not write" in trial.outputs[-1]
        filler.unlink(missing_ok=True)
        resume(trial)
        shutil.copytree(runs, trial.home / "kept")
    finally:
        subprocess.run(["umount", runs], check=True)
    runs.rmdir()
    (trial.home / "kept").rename(runs)


def nan_on_a_rank(trial: Trial) -> None:
    fault = f"nan:{trial.chance.randrange(trial.ranks)}:{trial.chance.randrange(1, STEPS)}"
    with trial.started(CHAOS=fault) as ranks:
        assert set(trial.end(ranks)) == {1}
    assert "the loss is nan at step" in trial.outputs[-1]


def exception_on_a_rank(trial: Trial) -> None:
    fault = f"exception:{trial.chance.randrange(trial.ranks)}:{trial.chance.randrange(1, STEPS)}"
    with trial.started(CHAOS=fault) as ranks:
        failed(trial.end(ranks))
    assert "LookupError: planted in this rank" in trial.outputs[-1]


def tracker_that_blocks(trial: Trial) -> None:
    (trial.home / "wandb.py").write_text("import time\ntime.sleep(1000)\n")
    trial.arguments += ["--tracking.wandb", "offline", "--tracking.timeout", "1"]
    with trial.started() as ranks:
        assert set(trial.end(ranks)) == {0}
    assert "wandb did not finish" in trial.outputs[-1]


def data_gone(trial: Trial) -> None:
    """The images go away in mid-run, which has read them; the start after it is refused until they are back."""
    root = trial.home / "images"
    trial.environment["DISTCNN_CACHE"] = str(trial.home / "cache")
    trial.arguments += ["--data.source", "folder", "--data.root", str(root)]
    shutil.copytree(trial.home.parent / "images", root)
    with trial.started() as ranks:
        trial.until_step(ranks, trial.chance.randrange(1, STEPS // 2))
        root.rename(trial.home / "gone")
        trial.victim(ranks).kill()
        failed(trial.end(ranks))
    with trial.started() as ranks:
        assert set(trial.end(ranks)) == {2}
    assert "no such folder" in trial.outputs[-1]
    (trial.home / "gone").rename(root)


def clock_jump(trial: Trial) -> None:
    fault = f"clock:{trial.chance.randrange(trial.ranks)}:{trial.chance.randrange(1, STEPS)}"
    with trial.started(CHAOS=fault) as ranks:
        assert set(trial.end(ranks)) == {0}


FAULTS = (
    sigkill_of_a_rank, sigkill_of_the_launcher, sigstop_of_a_rank, sigterm_to_a_rank, kill_during_a_save,
    truncated_checkpoint, bit_flipped_checkpoint, full_disk, nan_on_a_rank, exception_on_a_rank, tracker_that_blocks,
    data_gone, clock_jump,
)  # fmt: skip
NEEDS_ROOT = (full_disk,)


def resume(trial: Trial) -> None:
    """The same command again, without the fault."""
    with trial.started() as ranks:
        codes = trial.end(ranks)
    assert set(codes) == {0}, f"the resumed run ended with {codes}"


class Chaos:
    """Trials in one folder, with the undisturbed runs that they are compared to."""

    def __init__(self, home: Path, seed: int):
        self.home, self.seed = home, seed
        self.references: dict[tuple[int, bool], Path] = {}
        _images(home / "images")

    def reference(self, ranks: int, folder: bool) -> Path:
        """The undisturbed run."""
        if (ranks, folder) not in self.references:
            trial = self._trial(f"reference-{ranks}-{folder}", ranks, random.Random(0))
            if folder:
                trial.environment["DISTCNN_CACHE"] = str(trial.home / "cache")
                trial.arguments += ["--data.source", "folder", "--data.root", str(self.home / "images")]
            resume(trial)
            self.references[ranks, folder] = trial.run
        return self.references[ranks, folder]

    def _trial(self, name: str, ranks: int, chance: random.Random) -> Trial:
        home = self.home / name
        home.mkdir()
        (home / "chaos.yaml").write_text(CONFIG)
        loader = chance.choice(["resident", "streaming"])
        return Trial(
            home, ranks, chance, arguments=["--data.loader", loader, "--data.workers", "1", "--data.image_size", "16"]
        )

    def trial(self, number: int, fault: Callable[[Trial], None]) -> tuple[str, int]:
        """What went wrong, nothing if all is well, and on how many ranks."""
        chance = random.Random(f"{self.seed}-{number}")
        trial = self._trial(f"trial-{number}", chance.choice([1, 2, 3]), chance)
        try:
            fault(trial)
            resume(trial)
            left = [path.name for path in trial.run.rglob("*") if path.name.endswith(".partial")]
            reference = self.reference(trial.ranks, fault is data_gone)
            assert weights(trial.run) == weights(reference), "other weights"
            assert history(trial.run) == history(reference), "another history"
            assert not left, f"left behind: {left}"
        except (AssertionError, OSError, psutil.Error) as error:
            (trial.home / "outputs").write_text("\n=====\n".join(trial.outputs))
            return f"trial {number}, {fault.__name__}, {trial.ranks} ranks: {error}", trial.ranks
        shutil.rmtree(trial.home)
        return "", trial.ranks


def _images(root: Path) -> None:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 250), ("test", 30)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
                    root / split / name / f"{i}.png"
                )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=26)
    parser.add_argument("--first", type=int, default=0, help="begin with this trial: each is seeded by its number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one fault, by its name")
    parser.add_argument("--keep", action="store_true", help="keep the folders of failed trials")
    parser.add_argument("--out", type=Path, help="write the table to this Markdown file")
    options = parser.parse_args()
    faults = [f for f in FAULTS if (os.geteuid() == 0 or f not in NEEDS_ROOT) and options.only in (None, f.__name__)]
    home = Path(tempfile.mkdtemp(prefix="distcnn-chaos-"))
    chaos, problems = Chaos(home, options.seed), []
    rows: dict[str, list[tuple[bool, float]]] = {fault.__name__: [] for fault in faults}
    for number in range(options.first, options.trials):
        fault = faults[number % len(faults)]
        started = time.monotonic()
        problem, ranks = chaos.trial(number, fault)
        rows[fault.__name__].append((not problem, time.monotonic() - started))
        print(
            f"{number:4} {fault.__name__:24} {ranks} ranks  {rows[fault.__name__][-1][1]:5.1f} s  {problem or 'ok'}",
            flush=True,
        )
        problems += [problem] * bool(problem)
    table = [
        "| fault | trials | ended as promised, and to the bit after the resume | median s |",
        "| --- | --- | --- | --- |",
    ]
    for name, results in rows.items():
        good = sum(ok for ok, _ in results)
        seconds = f"{median(s for _, s in results):.1f}" if results else ""
        table.append(f"| {name.replace('_', ' ')} | {len(results)} | {good} | {seconds} |")
    total = sum(len(results) for results in rows.values())
    good = total - len(problems)
    table.append(f"| all | {total} | {good} | |")
    print("\n".join(table))
    if options.out:
        command = f"python -m tests.chaos --trials {options.trials} --seed {options.seed}"
        machine = f"{os.cpu_count()} cores, {platform.system()}, PyTorch {torch.__version__}"
        text = (
            f"# Chaos\n\n{__doc__.split(chr(10) * 2)[2].strip()}\n\n`{command}` on {machine}:\n\n"
            + "\n".join(table)
            + "\n"
        )
        options.out.write_text(text + "".join(f"\n- {problem}" for problem in problems) + "\n" * bool(problems))
    if problems and options.keep:
        print(f"kept: {home}")
    else:
        shutil.rmtree(home)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
