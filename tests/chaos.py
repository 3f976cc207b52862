"""Chaos: one fault a trial, at a random moment of a short training; then it is resumed, and compared to the bit.

    python tests/chaos.py --trials 200 --seed 0 --out docs/chaos.md        (make chaos)

Every trial trains on 1, 2 or 3 ranks (real processes), is hit by one fault, has to end as promised (exit code, within
a bound, no process left), and is then started again by the same command until it is done. Its final weights and its
history must be those of a training that nothing has hit, to the bit.
"""

import argparse
import hashlib
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
from conftest import clean_environment, free_port, metrics

STEPS = 24
TIMEOUT_S = 20  # train.timeout
BOUND_S = 90  # a trial's run that takes longer hangs
CONFIG = """
data: {source: synthetic, synthetic_train: 500, synthetic_test: 101, image_size: 16, flip: true, crop_padding: 2}
model: {name: "chaos_faults:Net"}
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

    @property
    def run(self) -> Path:
        return self.home / "runs" / "chaos"

    def command(self) -> list[str]:
        return [
            "-m", "distcnn", "train", str(self.home / "chaos.yaml"), "--checkpoint.resume", "auto",
            "--output_dir", str(self.home / "runs"), "--train.duration", f"{STEPS}step", "--train.batch_size", "240",
            "--train.micro_batch", "40", "--train.threads", "1", "--train.timeout", str(TIMEOUT_S),
            "--checkpoint.every", "3step", "--tracking.log_every", "1", "--tracking.console", "false",
            "--tracking.wandb", "disabled", *self.arguments,
        ]  # fmt: skip

    @contextmanager
    def started(self, **environment: str) -> Iterator["Ranks"]:
        """The ranks as processes; whatever is left of them in the end is a failure of the trial, and killed."""
        shared = clean_environment() | self.environment | environment
        shared["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        pipe = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "cwd": self.home}
        ranks = Ranks(self)
        with (self.home / "output").open("w+") as output:
            pipe["stdout"] = output
            if self.launcher == "torchrun":
                torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.ranks}"]
                ranks.processes = [psutil.Popen([sys.executable, *torchrun, *self.command()], env=shared, **pipe)]
            else:
                if self.ranks > 1:
                    shared |= {
                        "WORLD_SIZE": str(self.ranks),
                        "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": str(free_port()),
                    }
                for rank in range(self.ranks):
                    own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if self.ranks > 1 else {}
                    ranks.processes.append(psutil.Popen([sys.executable, *self.command()], env=shared | own, **pipe))
            try:
                yield ranks
            finally:
                for process in ranks.all():
                    process.kill()
                output.seek(0)
                self.outputs.append(output.read())


class Ranks:
    """The processes of one start."""

    def __init__(self, trial: Trial):
        self.trial, self.processes, self.workers = trial, [], []

    def all(self) -> list[psutil.Process]:
        """Every process of it that lives, workers of workers as well."""
        found = set(self.workers)
        for process in [*self.processes, *self.workers]:
            try:
                found |= {process, *process.children(recursive=True)}
            except psutil.NoSuchProcess:
                continue
        return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def until_step(self, step: int) -> None:
        """Wait until so many steps are logged, or it has ended."""
        end = time.monotonic() + BOUND_S
        while steps(self.trial.run) < step and self.processes[0].poll() is None:
            assert time.monotonic() < end, "it did not begin to train"
            time.sleep(0.02)
        if self.trial.launcher == "torchrun":
            self.workers = self.processes[0].children()

    def victim(self) -> psutil.Process:
        """One of the ranks."""
        return self.trial.chance.choice(self.workers or self.processes)

    def end(self) -> list[int]:
        """The exit codes, when all have ended."""
        deadline = time.monotonic() + BOUND_S
        for process in self.processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except psutil.TimeoutExpired:
                raise AssertionError("it hangs") from None
        while left := self.all():
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.1)
        return [process.returncode for process in self.processes]


def steps(run: Path) -> int:
    """Steps logged so far."""
    try:
        return (run / "metrics.jsonl").read_text().count('"kind": "train"')
    except FileNotFoundError:
        return 0


def history(run: Path) -> list[tuple[object, ...]]:
    keys = ("kind", "step", "epoch", "loss", "lr", "correct", "total")
    return [tuple(line.get(key) for key in keys) for line in metrics(run) if line["kind"] != "event"]


def weights(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


# --- the faults: each does its harm, and checks that the run has ended as promised ------------------------------


def failed(codes: list[int]) -> None:
    assert any(codes), f"exit codes {codes}"
    assert 0 not in codes, f"a rank went on alone: {codes}"


def sigkill_of_a_rank(trial: Trial) -> None:
    with trial.started() as ranks:
        ranks.until_step(trial.chance.randrange(STEPS - 2))
        ranks.victim().kill()
        failed(ranks.end())


def sigkill_of_the_launcher(trial: Trial) -> None:
    trial.launcher = "torchrun"
    with trial.started() as ranks:
        ranks.until_step(trial.chance.randrange(1, STEPS - 2))
        ranks.processes[0].kill()
        failed(ranks.end())


def sigstop_of_a_rank(trial: Trial) -> None:
    trial.ranks = max(2, trial.ranks)
    with trial.started() as ranks:
        ranks.until_step(trial.chance.randrange(1, STEPS // 2))
        victim = ranks.victim()
        rank = ranks.processes.index(victim)
        victim.suspend()
        failed(ranks.end())
    assert f"rank {rank} on" in trial.outputs[-1], f"rank {rank} is not named"
    assert "no sign of life" in trial.outputs[-1]


def sigterm_to_a_rank(trial: Trial) -> None:
    trial.launcher = trial.chance.choice(["bare", "torchrun"])
    with trial.started() as ranks:
        ranks.until_step(trial.chance.randrange(STEPS - 3))
        ranks.victim().send_signal(signal.SIGTERM)
        codes = ranks.end()
    ended = steps(trial.run) == STEPS  # it came too late
    assert ended or set(codes) <= ({1} if trial.launcher == "torchrun" else {75, -15}), f"exit codes {codes}"


def kill_during_a_save(trial: Trial) -> None:
    with trial.started(CHAOS=f"save:0:{trial.chance.randrange(1, 50)}") as ranks:
        failed(ranks.end())


def damaged(trial: Trial, harm: Callable[[bytes], bytes]) -> None:
    with trial.started() as ranks:
        ranks.until_step(trial.chance.randrange(8, STEPS - 2))
        ranks.victim().kill()
        failed(ranks.end())
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
            ranks.until_step(trial.chance.randrange(1, STEPS // 3))
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass
            if again:
                time.sleep(0.5)
                filler.unlink()
            codes = ranks.end()
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
        assert set(ranks.end()) == {1}
    assert "the loss is nan at step" in trial.outputs[-1]


def exception_on_a_rank(trial: Trial) -> None:
    fault = f"exception:{trial.chance.randrange(trial.ranks)}:{trial.chance.randrange(1, STEPS)}"
    with trial.started(CHAOS=fault) as ranks:
        failed(ranks.end())
    assert "LookupError: planted in this rank" in trial.outputs[-1]


def tracker_that_blocks(trial: Trial) -> None:
    (trial.home / "wandb.py").write_text("import time\ntime.sleep(1000)\n")
    trial.arguments += ["--tracking.wandb", "offline", "--tracking.wandb_timeout", "1"]
    with trial.started() as ranks:
        assert set(ranks.end()) == {0}
    assert "wandb did not finish" in trial.outputs[-1]


def data_gone(trial: Trial) -> None:
    """The images go away in mid-run, which has read them; the start after it is refused until they are back."""
    root = trial.home / "images"
    trial.environment["DISTCNN_CACHE"] = str(trial.home / "cache")
    trial.arguments += ["--data.source", "folder", "--data.root", str(root)]
    shutil.copytree(trial.home.parent / "images", root)
    with trial.started() as ranks:
        ranks.until_step(trial.chance.randrange(1, STEPS // 2))
        root.rename(trial.home / "gone")
        ranks.victim().kill()
        failed(ranks.end())
    with trial.started() as ranks:
        assert set(ranks.end()) == {2}
    assert "no such folder" in trial.outputs[-1]
    (trial.home / "gone").rename(root)


def clock_jump(trial: Trial) -> None:
    fault = f"clock:{trial.chance.randrange(trial.ranks)}:{trial.chance.randrange(1, STEPS)}"
    with trial.started(CHAOS=fault) as ranks:
        assert set(ranks.end()) == {0}


FAULTS = (
    sigkill_of_a_rank, sigkill_of_the_launcher, sigstop_of_a_rank, sigterm_to_a_rank, kill_during_a_save,
    truncated_checkpoint, bit_flipped_checkpoint, full_disk, nan_on_a_rank, exception_on_a_rank, tracker_that_blocks,
    data_gone, clock_jump,
)  # fmt: skip
NEEDS_ROOT = (full_disk,)


def resume(trial: Trial) -> None:
    """The same command again, without the fault."""
    with trial.started() as ranks:
        codes = ranks.end()
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
        command = f"python tests/chaos.py --trials {options.trials} --seed {options.seed}"
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
