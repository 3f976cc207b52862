"""Planted faults: `make mutants` breaks one line of the code at a time, in a copy, and runs the quick tests there.

A fault that they do not find is one that a change could bring in unseen. The list holds faults of wiring (a setting
that goes nowhere) and of arithmetic (a share left out), each as the text of the code and what is put in its place; a
text that is no longer there once fails the run, and a test.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
PARTS = ("distcnn", "tests", "configs", "docs", "launch", "slurm", "benchmarks", "pyproject.toml", "README.md")
# Those of `make test-quick`, but for the one that looks for the lines of this list.
QUICK = ("-m", "not slow", "--ignore=tests/unit/test_mutants.py", "tests/golden", "tests/unit")
LIMIT_S = 900  # of one run of the quick tests: a fault may make them hang


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    file: str  # below distcnn/
    fault: str  # what a user would get
    old: str  # the text, which is there once
    new: str


MUTANTS = [
    Mutant("training/loop.py", "no schedule: the rate of step 0 throughout", "run.schedule.lr_at(progress.step)", "run.schedule.lr_at(0)"),
    Mutant("training/losses/cross_entropy.py", "label smoothing is ignored", "label_smoothing=label_smoothing)", "label_smoothing=0.0)"),
    Mutant("training/loop.py", "the averages of the weights never move", "run.averages.after_step(progress.step, last=progress.step == run.plan.steps)", "pass"),
    Mutant("training/step_log.py", "the fastest rank is named as the slowest", "busy.index(slowest)", "busy.index(min(busy))"),
    Mutant("training/loop.py", "micro-batches weigh alike, whatever they hold", "run.loss(logits.float(), batch.labels) * batch.weight", "run.loss(logits.float(), batch.labels)"),
    Mutant("training/loop.py", "epochs count from 1 in the order of the images", "loader.epoch(epoch, first_step)", "loader.epoch(epoch + 1, first_step)"),
    Mutant("training/loop.py", "the lowest accuracy is the best", "found.accuracy > progress.best_accuracy", "found.accuracy < progress.best_accuracy"),
    Mutant("training/step_log.py", "a loss that is not finite is trained on", "        if not bad:", "        if bad is not None:"),
    Mutant("training/loop.py", "dropout is not seeded by position", "seed_generators(batch.seed, run.device)", "pass"),
    Mutant("training/loop.py", "an evaluation comes an epoch late in the log", "run.plan.epoch_of(progress.step)", "1 + run.plan.epoch_of(progress.step)"),
    Mutant("data/augment/pipeline.py", "no augmentation", "in map(named, config.augment):", "in map(named, ()):"),
    Mutant("data/augment/progressive_resize.py", "no progressive resizing", "(images if size is None", "(images if step >= 0"),
    Mutant("training/build.py", "every rank trains the images of rank 0", "micro_batch=plan.micro_batch, rank=world.rank", "micro_batch=plan.micro_batch, rank=0"),
    Mutant("training/build.py", "the training images are evaluated", 'sources.load(config.data, "test")', 'sources.load(config.data, "train")'),
    Mutant("training/build.py", "the seed does not change the weights", "torch.manual_seed(config.seed)", "torch.manual_seed(0)"),
    Mutant("training/build.py", "train.drop_last is ignored", "drop_last=config.train.drop_last", "drop_last=False"),
    Mutant("training/build.py", "the seed does not change the augmentation", "return ResidentLoader(images.train, sampler, preprocess, pipeline, config.seed)", "return ResidentLoader(images.train, sampler, preprocess, pipeline, 0)"),
    Mutant("training/start_and_end.py", "DISTCNN_GRACE is ignored", "int(seconds) if seconds.isdecimal() else 0", "0"),
    Mutant("training/run.py", "the last weights are evaluated, not their average", "with self.averages.swapped_in():\n            found", "if self.averages:\n            found"),
    Mutant("training/start_and_end.py", "the last weights are exported, not their average", "with run.averages.swapped_in():\n            final", "if run.averages:\n            final"),
    Mutant("training/run.py", "a resumed run starts its averages anew", "self.averages.load_state_dict(checkpoint.averages)", "pass"),
    Mutant("training/evaluate.py", "eval.views is ignored", "config.eval.views, ", '"one", '),
    Mutant("data/samplers.py", "every epoch has the order of the first", "SeedSequence((self.seed, self.epoch))", "SeedSequence((self.seed, 0))"),
    Mutant("data/samplers.py", "epoch 1 of seed 0 is epoch 0 of seed 1", "SeedSequence((self.seed, self.epoch))", "SeedSequence(self.seed + self.epoch)"),
    Mutant("data/samplers.py", "a rank skips its first batch of an evaluation", "list(enumerate(batches))[rank::world_size]", "list(enumerate(batches))[rank + 1 :: world_size]"),
    Mutant("data/loaders/batch.py", "dropout's masks repeat in each epoch", "_DROPOUT + micro.epoch, micro.start", "_DROPOUT, micro.start"),
    Mutant("data/sources/load.py", "the images held out are trained on as well", "else order[config.holdout :]", "else order"),
    Mutant("data/sources/load.py", "data.max_train and data.max_test are swapped", 'config.max_train if split == "train" else config.max_test', 'config.max_test if split == "train" else config.max_train'),
    Mutant("data/normalize.py", "the mean is not divided by the deviation", "-mean / std for", "-mean for"),
    Mutant("data/augment/flip.py", "the alternating flip does not alternate", "^ (places.epoch % 2 == 1)", "^ (places.epoch < 0)"),
    Mutant("data/augment/pipeline.py", "crops move along one axis by the other's draw", "windows(images, drawn[\"down\"], right, mirrored)", "windows(images, right, right, mirrored)"),
    Mutant("data/augment/cutout.py", "the square of cutout is a pixel too high", "(rows < self.size)", "(rows <= self.size)"),
    Mutant("data/augment/mixing.py", "mixed images get the share of the other label", "torch.lerp(one_hot.roll(1, 0), one_hot,", "torch.lerp(one_hot, one_hot.roll(1, 0),"),
    Mutant("engine/base.py", "no clipping", "if self.clip_norm is not None:", "if self.clip_norm == 0:"),
    Mutant("engine/gradient_sum.py", "a rank's own last micro-batch is not exchanged", "torch.cat(totals).add_(buffer)", "torch.cat(totals)"),
    Mutant("engine/gradient_sum.py", "gradients of earlier steps are added", "            self.sums[p].zero_()", "            self.sums[p].add_(0)"),
    Mutant("engine/base.py", "autocast is never entered", "return autocast(self.device, self.precision)", "return nullcontext()"),
    Mutant("engine/master_weights.py", "the copy in bfloat16 keeps the first weights", "torch._foreach_copy_(self.copies, self.masters)", "pass"),
    Mutant("engine/base.py", "a resumed run has no momentum", 'self.optimizer.load_state_dict(state["optimizer"])', "pass"),
    Mutant("distributed/collectives.py", "an all-reduce is missing", "        dist.all_reduce(tensor)", "        dist.barrier()"),
    Mutant("training/batchnorm.py", "each rank keeps its own running statistics", "mean = sum_ranks(self.total)", "mean = self.total"),
    Mutant("training/batchnorm.py", "running statistics of a short micro-batch weigh too much", ".double() * weight", ".double() / 6"),
    Mutant("training/batchnorm.py", "forwards are counted, not steps", "torch._foreach_minimum_(self.counts, torch._foreach_add(self.counts_before, 1))", "pass"),
    Mutant("training/averaging.py", "the moving average remembers the random start", "1 - min(self.decay, (1 + step) / (10 + step))", "1 - self.decay"),
    Mutant("training/averaging.py", "Lookahead's slow weights move a step late", "step % self.every == 0", "step % (self.every + 1) == 0"),
    Mutant("optim/optimizers.py", "optim.head_lr and optim.bias_lr are ignored", 'lr * group.get("lr_scale", 1.0)', 'lr'),
    Mutant("optim/optimizers.py", "biases and BatchNorm decay", "decay = config.weight_decay if p.ndim > 1 else 0.0", "decay = config.weight_decay"),
    Mutant("optim/adam.py", "Adam's betas are swapped", "return Adam(params, lr, betas=betas", "return Adam(params, lr, betas=betas[::-1]"),
    Mutant("optim/adam.py", "Adam's eps is ignored", "return Adam(params, lr, betas=betas, eps=eps", "return Adam(params, lr, betas=betas"),
    Mutant("optim/sgd.py", "no Nesterov momentum", "nesterov=nesterov, fused", "fused"),
    Mutant("optim/schedules.py", "the warm-up begins at zero", "(step + 1) / (self.warmup + 1)", "step / self.warmup"),
    Mutant("optim/schedules.py", "the cosine ignores its final rate", "_cosine(1.0, final, (step - span.warmup)", "_cosine(1.0, 0.0, (step - span.warmup)"),
    Mutant("config/plan.py", "the root scales the rate like the linear rule", '"sqrt": 0.5', '"sqrt": 1.0'),
    Mutant("optim/schedules.py", "the linear schedule forgets the warm-up", "(final - 1) * (step - span.warmup)", "(final - 1) * step"),
    Mutant("config/plan.py", "evaluations follow checkpoint.every", "to_steps(config.eval.every,", "to_steps(config.checkpoint.every,"),
    Mutant("training/evaluate.py", "the loss is a mean of batch means", '.double().sum()', '.double().mean()'),
    Mutant("training/evaluate.py", "the first five are the first one", "(best[rows] == labels[:, None])", "(best[rows, :1] == labels[:, None])"),
    Mutant("training/evaluate.py", "true and predicted classes are swapped", "labels * k + logits.argmax(dim=1)", "logits.argmax(dim=1) * k + labels"),
    Mutant("training/metrics/build.py", "a metric is a sum in place of a mean", "float(sums[0]) / images", "float(sums[0])"),
    Mutant("training/evaluate.py", "metrics get each other's sums", "np.cumsum(sizes)[:-1]", "np.cumsum(sizes[::-1])[:-1]"),
    Mutant("training/metrics/per_class.py", "absent classes count in the average", "sums[:, sums[1:].sum(axis=0) > 0]", "sums"),
    Mutant("training/evaluate.py", "training goes on in evaluation mode", "model.train(was_training)", "model.train(False)"),
    Mutant("checkpoint/file.py", "best.pt is never written", "        if best:", "        if best is None:"),
    Mutant("checkpoint/file.py", "one checkpoint too many is kept", "found[self.keep :]", "found[self.keep + 1 :]"),
    Mutant("tracking/jsonl.py", "a resume loses the last step before it", '["step"] <= step', '["step"] < step'),
]  # fmt: skip


def problems(mutants: list[Mutant] = MUTANTS, root: Path = ROOT) -> list[str]:
    """The faults whose text is not in their file once."""
    found = [(one, (root / "distcnn" / one.file).read_text(encoding="utf-8").count(one.old)) for one in mutants]
    return [f"{one.file}: {one.fault}: {n} times in it: {one.old!r}" for one, n in found if n != 1]


def plant(mutant: Mutant, root: Path) -> None:
    """Break the copy."""
    path = root / "distcnn" / mutant.file
    path.write_text(path.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")


def mend(mutant: Mutant, root: Path) -> None:
    """Put the file back."""
    shutil.copyfile(ROOT / "distcnn" / mutant.file, root / "distcnn" / mutant.file)


def copy(root: Path) -> None:
    """The files that git knows, as they are now."""
    names = subprocess.run(["git", "ls-files", "-z", *PARTS], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in names.stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)


def first_failure(root: Path) -> str:
    """The test that the quick tests fail first, there; nothing if they all pass."""
    # One after the other, up to the first failure: the golden curves, then the rest.
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *QUICK]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"(they did not end within {LIMIT_S} s)"
    if done.returncode == 0:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or not failed:  # not a test that failed: something that broke them all
        raise RuntimeError(done.stdout[-3000:] + done.stderr[-3000:])
    return failed[1]


def main() -> int:
    """Plant the faults whose text or file holds one of the words, or all; 1 if one is not found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", metavar="WORD", nargs="*", help="only faults that hold one of these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="faults at once; default: one on each core")
    parser.add_argument("--out", type=Path, help="write a table here")
    options = parser.parse_args()
    chosen = [one for one in MUTANTS if not options.words or any(word in f"{one.file} {one.fault}" for word in options.words)]  # fmt: skip
    if lost := problems(chosen):
        print("\n".join(lost), file=sys.stderr)
        return 1
    copies: Queue[Path] = Queue()

    def found_by(mutant: Mutant) -> str:
        root = copies.get()
        plant(mutant, root)
        try:
            found = first_failure(root)
        finally:
            mend(mutant, root)
            copies.put(root)
        print(
            f"{'found' if found else 'NOT FOUND':9}  {mutant.file}: {mutant.fault}: {found or 'by no test'}", flush=True
        )
        return found

    with TemporaryDirectory() as folder:
        for job in range(options.jobs):
            copy(Path(folder, str(job)))
            copies.put(Path(folder, str(job)))
        if broken := first_failure(Path(folder, "0")):
            print(f"without any fault: {broken} fails", file=sys.stderr)
            return 1
        with ThreadPoolExecutor(options.jobs) as pool:
            found = list(pool.map(found_by, chosen))
    print(f"{sum(map(bool, found))} of {len(found)} found")
    if options.out:
        options.out.write_text(table(chosen, found), encoding="utf-8")
    return 0 if all(found) else 1


def table(mutants: list[Mutant], found: list[str]) -> str:
    """Markdown."""
    rows = [f"| `{one.file}` | {one.fault} | {f'`{by}`' if by else '**none**'} |\n" for one, by in zip(mutants, found, strict=True)]  # fmt: skip
    return (
        "# Planted faults\n\n"
        "Written by `make mutants`: each line of the table is one line of the code, broken by itself in a copy, and the first of\n"
        "the quick tests (`make test-quick`) that failed then, the golden curves being tried first. The faults are listed in\n"
        f"tests/mutants.py. {sum(map(bool, found))} of {len(found)} were found on {date.today():%Y-%m-%d}, with torch {version('torch')}.\n\n"
        "| file | what a user would get | found by |\n| --- | --- | --- |\n" + "".join(rows)
    )


if __name__ == "__main__":
    sys.exit(main())
