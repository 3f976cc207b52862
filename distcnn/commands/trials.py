"""`distcnn trials CONFIG -n N [--vs CONFIG2]`: the same config over N seeds, and whether another one is better."""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from distcnn.commands.command import command_parser
from distcnn.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, DistcnnError, InputError, StoppedError

if TYPE_CHECKING:
    from distcnn.config.schema import Config
    from distcnn.runs.history import History
    from distcnn.runs.records import Record

EPILOG = """examples:
  distcnn trials configs/digits.yaml -n 5
  distcnn trials configs/a.yaml -n 5 --vs configs/b.yaml --train.duration 20ep
  distcnn trials configs/a.yaml -n 16 --slurm --gpus-per-node 1 --time 01:00:00
  distcnn trials configs/a.yaml -n 16                  afterwards: runs what is left, and adds it all up

Trial i is an ordinary run, NAME-seed<i>, with --seed i: one at a time on each GPU that CUDA_VISIBLE_DEVICES leaves, or
one on the CPU; --parallel K shares them. Started again, finished trials are kept and others go on from their
checkpoints. The table is kept as NAME-trials.json and NAME-trials.png beside the runs.
"""


@dataclass(frozen=True)
class Trial:
    """One run to be made."""

    config: Path
    name: str
    seed: int
    folder: Path


def run(arguments: list[str]) -> None:
    """Run what is missing, print and keep the table. Raises InputError, StoppedError or DistcnnError."""
    options, overrides = _parser().parse_known_args(arguments)
    problems = [
        f"{flag} {value}: should be {least} or more"
        for flag, value, least in (
            ("-n", options.n, 1), ("--first-seed", options.first_seed, 0), ("--parallel", options.parallel, 1)
        )
        if value is not None and value < least
    ]  # fmt: skip
    if absent := [name for name in ("scipy", "matplotlib") if find_spec(name) is None]:
        problems.append(f"distcnn trials: needs {' and '.join(absent)}: pip install 'distcnn[trials]'")
    if problems:
        raise InputError(problems)
    paths = [Path(options.config), *([Path(options.vs)] if options.vs else [])]
    if options.slurm:
        _submit(paths, options, overrides)
        return
    configs = _checked(paths, overrides)
    seeds = range(options.first_seed, options.first_seed + options.n)
    trials = [
        Trial(path, f"{config.name}-seed{seed}", seed, Path(config.output_dir) / f"{config.name}-seed{seed}")
        for seed in seeds for path, config in zip(paths, configs, strict=True)
    ]  # fmt: skip
    by_path = dict(zip(paths, configs, strict=True))
    left = _left(trials, by_path)
    failed = _run_all(left, overrides, configs[0], options.parallel)
    names = [str(config.name) for config in configs]
    rows: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in names}
    for trial in trials:
        if result := _result(trial):
            rows[str(by_path[trial.config].name)][trial.seed] = result
    found = added_up(rows)
    output = Path(configs[0].output_dir) / f"{'-vs-'.join(names)}-trials.json"
    _keep(found, output)
    _print(found)
    if options.json:
        print(json.dumps(found), flush=True)
    if failed:
        raise DistcnnError(f"{len(failed)} of {len(trials)} trials failed: {'; '.join(failed)}")


def added_up(rows: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """{config: {seed: eval record}} → what is printed and kept."""
    from distcnn.trials.statistics import paired, summary

    found: dict[str, Any] = {"configs": {}}
    for name, by_seed in rows.items():
        one: dict[str, Any] = {"trials": [{"seed": seed, **record} for seed, record in sorted(by_seed.items())]}
        for key in ("accuracy", "loss"):
            if values := [record[key] for record in by_seed.values() if record[key] is not None]:
                one[key] = asdict(summary(values))
        found["configs"][name] = one
    if len(rows) == 2:
        (first, a), (second, b) = rows.items()
        shared = sorted(a.keys() & b.keys())
        if shared:
            one_by_one = ([each[seed]["accuracy"] for seed in shared] for each in (a, b))
            found["difference"] = {"of": [second, first], "seeds": shared, **paired(*one_by_one)}
    return found


def _checked(paths: Sequence[Path], overrides: list[str]) -> list["Config"]:
    """Each trial's config but for its seed, before any of them starts."""
    from distcnn.config.settings import Settings
    from distcnn.distributed.world import World
    from distcnn.training.build import checked

    settings = [Settings().read_yaml(path).read_arguments(overrides).default("name", path.stem) for path in paths]
    configs = [checked(one, World()) for one in settings]
    names = [config.name for config in configs]
    if len(set(names)) < len(names):
        raise InputError(f"--vs {paths[1]}: its name, {names[0]}, is that of {paths[0]} too; give it another one")
    return configs


def _left(trials: Sequence[Trial], configs: Mapping[Path, "Config"]) -> list[Trial]:
    """The trials that are not done. Raises InputError with all that stand in the way."""
    left, problems = list[Trial](), list[str]()
    for trial in trials:
        try:
            if not _is_done(trial, configs[trial.config]):
                left.append(trial)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return left


def _is_done(trial: Trial, config: "Config") -> bool:
    """Whether its run has ended as it was to. Raises InputError where that name holds another run, or one that cannot
    be read. Of a log with damaged lines the others count: to go on from its checkpoint takes no more.
    """
    from distcnn.checkpoint.resume import HARMLESS, differences
    from distcnn.config.settings import to_dict
    from distcnn.runs.history import read_history

    try:
        run = read_history(trial.folder)
    except InputError:  # nothing yet
        return False
    if run.damage and (run.state == "unreadable" or not run.settings):
        raise InputError(f"{trial.folder}: {'; '.join(run.damage)}; give another --name, or remove it")
    wanted = to_dict(replace(config, name=trial.name, seed=trial.seed))
    changed = [
        (key, was, now) for key, was, now in differences(run.settings, wanted)
        if not {key, key.split(".")[0]} & set(HARMLESS)
    ]  # fmt: skip
    if changed:
        raise InputError(
            f"{trial.folder}: was trained otherwise: "
            + "; ".join(f"{key} was {was}, is {now}" for key, was, now in changed)
            + "; give another --name, or remove it"
        )
    longer = run.settings.get("train", {}).get("duration") != config.train.duration
    done = run.state == "done" and not longer
    if done and _last_evaluation(run) is None:  # to go on from its end would not log it again
        lost = f"metrics.jsonl: no evaluation of the last step, {run.step}"
        raise InputError(f"{trial.folder}: {'; '.join((*run.damage, lost))}; give another --name, or remove it")
    for damage in run.damage:
        print(f"warning: {trial.folder}: {damage}", file=sys.stderr)
    return done


def _run_all(trials: Sequence[Trial], overrides: list[str], config: "Config", parallel: int | None) -> list[str]:
    """Each in a process of its own, as many at once as there are devices. Returns those that failed, and why."""
    import torch

    from distcnn.distributed.world import cores
    from distcnn.trials.visible_gpus import places

    gpus = 0 if config.train.device == "cpu" else torch.cuda.device_count()
    own = places(os.environ.get("CUDA_VISIBLE_DEVICES"), gpus, parallel)
    if own[0] is None and len(own) > 1 and config.train.threads is None:
        overrides = [*overrides, "--train.threads", f"{max(1, cores() // len(own))}"]
    waiting: queue.SimpleQueue[Trial] = queue.SimpleQueue()
    for trial in trials:
        waiting.put(trial)
    running: dict[str, subprocess.Popen[bytes]] = {}
    failed: list[str] = []
    ended = threading.Event()
    lock = threading.Lock()

    def work(gpu: str | None) -> None:
        while not ended.is_set():
            try:
                trial = waiting.get_nowait()
            except queue.Empty:
                return
            started = time.monotonic()
            with lock:
                if ended.is_set():
                    return
                running[trial.name] = process = _start(trial, overrides, gpu)
            code = process.wait()
            with lock:
                del running[trial.name]
                if ended.is_set():
                    return
                found = _result(trial)
                if code or not found:
                    log = _log(trial)
                    failed.append(f"{trial.name} (exit code {code}, see {log})")
                    print(f"{trial.name}: failed with exit code {code}; its output is in {log}", flush=True)
                else:
                    seconds = time.monotonic() - started
                    print(f"{trial.name}: {found['accuracy']:.2%} in {seconds:.0f} s", flush=True)

    threads = [threading.Thread(target=work, args=(gpu,), name="distcnn-trials") for gpu in own]
    with _Asked() as asked:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if asked.number and not ended.is_set():
                with lock:
                    ended.set()
                    for process in running.values():  # each saves, and ends
                        process.send_signal(asked.number)
            time.sleep(0.05)
    if asked.number:
        name = signal.Signals(asked.number).name
        code = EXIT_INTERRUPTED if asked.number == signal.SIGINT else EXIT_PREEMPTED
        raise StoppedError(f"stopped by {name}; the same command goes on from here", code)
    return failed


class _Asked:
    """Notes a signal instead of ending at once; the old handlers are put back."""

    def __enter__(self) -> "_Asked":
        self.number = 0
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
        self.before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        self.number = number

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _start(trial: Trial, overrides: list[str], gpu: str | None) -> "subprocess.Popen[bytes]":
    own = any(word.startswith("--tracking.group") for word in overrides)
    group = () if own else ("--tracking.group", trial.name.rpartition("-seed")[0])
    command = [
        sys.executable, "-m", "distcnn", "train", str(trial.config), "--checkpoint.resume", "auto", *overrides,
        "--seed", f"{trial.seed}", "--name", trial.name, *group,
    ]  # fmt: skip
    environment = os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
    log = _log(trial)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:  # a session of its own: Ctrl-C comes to it through this process, once
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )


def _log(trial: Trial) -> Path:
    return trial.folder.parent / f"{trial.name}.log"


def _result(trial: Trial) -> dict[str, Any] | None:
    """The evaluation of the last step of a run that is done."""
    from distcnn.runs.history import read_history

    try:
        run = read_history(trial.folder)
    except InputError:
        return None
    last = _last_evaluation(run) if run.state == "done" else None
    return last and {key: last.get(key) for key in ("accuracy", "correct", "total", "loss", "step")}


def _last_evaluation(run: "History") -> "Record | None":
    """That of the run's last step; None where the log has none, such as with that line damaged."""
    return next((record for record in reversed(run.evaluations) if record["step"] == run.step), None)


def _submit(paths: Sequence[Path], options: argparse.Namespace, rest: list[str]) -> None:
    from distcnn.commands import slurm

    last = options.first_seed + options.n - 1
    for path in paths:
        slurm.run([str(path), "--array", f"{options.first_seed}-{last}", *rest])


def _keep(found: dict[str, Any], output: Path) -> None:
    from distcnn.files import whole_file

    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output) as aside:
        aside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    with whole_file(output.with_suffix(".png")) as aside:
        _plot(found, aside)


def _plot(found: dict[str, Any], path: Path) -> None:
    """A row for each config: a point for each seed, the mean and its interval."""
    from matplotlib.figure import Figure

    configs = {name: one for name, one in found["configs"].items() if "accuracy" in one}
    figure = Figure(figsize=(8, 1.2 + 0.8 * len(configs)), layout="constrained")
    axis = figure.add_subplot()
    for row, one in enumerate(configs.values()):
        values = [100 * trial["accuracy"] for trial in one["trials"]]
        mean = one["accuracy"]
        axis.plot(values, [row] * len(values), "o", alpha=0.6, color=f"C{row}")
        if mean["low"] is not None:
            bounds = [[100 * (mean["mean"] - mean["low"])], [100 * (mean["high"] - mean["mean"])]]
            axis.errorbar([100 * mean["mean"]], [row + 0.25], xerr=bounds, fmt="D", capsize=4, color=f"C{row}")
    axis.set_yticks(range(len(configs)), [name.replace("$", r"\\$") for name in configs])
    axis.set_ylim(-0.5, len(configs) - 0.25)
    axis.set_xlabel("accuracy in %: each seed, the mean and its 95 % confidence interval")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", dpi=120)


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in ("config", "n", "mean", "std. deviation", "95 % interval", "loss"):
        table.add_column(title, justify="left" if title == "config" else "right", overflow="fold")
    for name, one in found["configs"].items():
        accuracy, loss = one.get("accuracy"), one.get("loss")
        if accuracy is None:
            table.add_row(Text(name), "0", "–", "–", "–", "–")
            continue
        loss_mean = "–" if loss is None else f"{loss['mean']:.4f}"
        table.add_row(Text(name), f"{accuracy['n']}", f"{accuracy['mean']:.2%}", *_spread(accuracy), loss_mean)
    difference = found.get("difference")
    if difference:
        second, first = difference["of"]
        cells = f"{difference['n']}", f"{100 * difference['mean']:+.2f} points", *_spread(difference)
        table.add_row(Text(f"{second} - {first}"), *cells, "")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)
    console.print(table)
    if difference:
        p = difference["p"]
        test = "no p-value: the pairs do not vary" if p is None else f"p = {p:.2g} (paired t-test, two-sided)"
        console.print(f"difference over shared seeds: {test}", markup=False)


def _spread(one: dict[str, Any]) -> tuple[str, str]:
    if one["deviation"] is None:
        return "–", "–"
    return f"{one['deviation']:.2%}", f"{one['low']:.2%} to {one['high']:.2%}"


def _parser() -> argparse.ArgumentParser:
    parser = command_parser(
        "trials", "CONFIG.yaml -n N [--vs CONFIG2.yaml] [options] [--section.key value ...]", __doc__, EPILOG
    )
    add = parser.add_argument
    add("config", metavar="CONFIG.yaml", help="the run")
    add("-n", type=int, required=True, metavar="N", help="so many seeds")
    add("--vs", metavar="CONFIG2.yaml", help="a run to be compared with, over the same seeds")
    add("--first-seed", type=int, default=0, metavar="S", help="default: 0")
    add("--parallel", type=int, metavar="K", help="so many at once; default: one for each GPU, or one on the CPU")
    add("--slurm", action="store_true", help="submit an array; the other options are those of distcnn slurm")
    add("--json", action="store_true", help="print one JSON object as the last line")
    return parser
