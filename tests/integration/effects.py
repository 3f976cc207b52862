"""What a short run leaves behind, and how two of them may differ: the vocabulary of the table in test_every_key.py."""

import contextlib
import gc
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

import distcnn
from distcnn.errors import DistcnnError
from tests.integration import observing
from tests.integration.observing import Forward
from tests.ranks import clean_environment, run_ranks
from tests.records import metrics

# 80 images in batches of 16: 5 steps an epoch.
BASE: dict[str, Any] = {
    "name": "run",
    "data.source": "synthetic", "data.args.train": 80, "data.args.test": 40, "data.image_size": 16,
    "model.name": "tests.integration.observing:Net",
    "optim.lr": 0.05,
    "train.duration": "4step", "train.batch_size": 16, "train.threads": 1, "train.device": "cpu",
    "eval.every": "100step", "checkpoint.every": "100step", "checkpoint.keep": 50,
    "tracking.wandb": "disabled", "tracking.console": False, "tracking.report": False,
}  # fmt: skip


@dataclass(frozen=True)
class Ran:
    """One run, with all that it left behind; one that was refused has printed why."""

    here: Path  # output_dir, and a place for other files of this run alone
    folder: Path
    records: list[dict[str, Any]]
    out: str
    err: str  # and the message of the exception that ended it
    code: int
    seen: Sequence[Forward] = ()  # empty for a process, as is the next
    held: Sequence[list[float]] = ()  # the rate of each of the optimizer's groups at each of its steps

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl of that kind."""
        return [record for record in self.records if record["kind"] == kind]

    @property
    def losses(self) -> list[float]:
        return [record["loss"] for record in self.of("train")]

    @property
    def rates(self) -> list[float]:
        return [record["lr"] for record in self.of("train")]

    @property
    def plan(self) -> dict[str, Any]:
        """The arithmetic, as its first event tells it."""
        plan: dict[str, Any] = self.of("event")[0]["environment"]["plan"]
        return plan

    @property
    def files(self) -> set[str]:
        """In the run's folder, and in those below."""
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}

    @property
    def checkpoints(self) -> list[int]:
        """The steps that they are of."""
        return sorted(int(path.stem[5:]) for path in self.folder.glob("checkpoints/step-*.pt"))

    @property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "model.safetensors")

    def images(self, *, training: bool = True) -> list[Tensor]:
        """What the network was given, call by call."""
        return [forward.images for forward in self.seen if forward.training == training]


Expectation = Callable[[Sequence[Ran]], None]


@dataclass(frozen=True)
class Effect:
    """Runs that differ in one key alone, one for each of `values`, and what is expected of them.

    `{here}` in a value is the run's own folder; other names in braces are those that the test's fixture provides.
    """

    values: Sequence[Any]
    expected: Sequence[Expectation]
    base: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, Any] | None = None  # of a run in the same place, before each of them
    process: bool = False  # whether each is `distcnn train` in a process of its own
    environment: Mapping[str, str] = field(default_factory=dict)  # of that process
    look: Callable[[Path], Any] | None = None  # asked at every forward with `here`; see Forward.looked


class Runner:
    """Makes the runs, each once."""

    def __init__(self, folder: Path, places: Mapping[str, str]):
        self.folder, self.places = folder, dict(places)
        self.known: dict[str, Ran] = {}
        self.numbers = itertools.count()

    def runs(self, key: str, effect: Effect) -> list[Ran]:
        """One for each value of the key."""
        found = []
        for value in effect.values:
            overrides = {**BASE, **effect.base, key: value}
            look = effect.look.__name__ if effect.look else None
            identity = json.dumps([overrides, effect.before, effect.process, dict(effect.environment), look])
            if identity not in self.known:
                here = self.folder / str(next(self.numbers))
                here.mkdir()
                self.known[identity] = self._run(here, overrides, effect)
            found.append(self.known[identity])
        return found

    def _run(self, here: Path, overrides: dict[str, Any], effect: Effect) -> Ran:
        places = self.places | {"here": str(here)}

        def filled(value: Any) -> Any:
            return value.format(**places) if isinstance(value, str) else value

        def config(values: Mapping[str, Any]) -> dict[str, Any]:
            return {"output_dir": str(here / "runs"), **{name: filled(value) for name, value in values.items()}}

        variables = {name: filled(value) for name, value in effect.environment.items()}
        if effect.process:
            return in_process_of_its_own(here, config(overrides), variables)
        if effect.before is not None:
            in_process(here, config({**BASE, **effect.base, **effect.before}), variables)
        look = effect.look
        return in_process(here, config(overrides), variables, (lambda: look(here)) if look else None)


def in_process(
    here: Path, config: Mapping[str, Any], environment: Mapping[str, str], look: Callable[[], Any] | None = None
) -> Ran:
    """`distcnn.train`, with the settings of this process put back afterwards."""
    out, err, said, code = io.StringIO(), io.StringIO(), "", 0
    observing.SEEN.clear()
    observing.LOOK[:] = [look] if look else []
    folder, held = here, list[list[float]]()
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: held.append([group["lr"] for group in optimizer.param_groups])
    )
    with _put_back(environment), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            folder = distcnn.train(config).folder
        except DistcnnError as error:
            said, code = str(error), error.exit_code
        finally:
            hook.remove()
    gc.collect()  # a loader's workers end with it
    records = metrics(folder) if code == 0 else []
    return Ran(here, folder, records, out.getvalue(), err.getvalue() + said, code, (*observing.SEEN,), held)


@contextlib.contextmanager
def _put_back(environment: Mapping[str, str]) -> Iterator[None]:
    """Within, the environment is clean but for that; afterwards it is as before, as are PyTorch and Accelerate."""
    threads, before = torch.get_num_threads(), dict(os.environ)
    try:
        variables = clean_environment() | environment
        os.environ.clear()
        os.environ.update(variables)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        torch.set_num_threads(threads)
        if "accelerate" in sys.modules:
            from accelerate.state import AcceleratorState

            AcceleratorState._reset_state(reset_partial_state=True)


def in_process_of_its_own(here: Path, config: Mapping[str, Any], environment: Mapping[str, str]) -> Ran:
    """`python -m distcnn train`."""
    (here / "run.yaml").write_text(yaml.safe_dump(dict(config)))
    outcome = run_ranks(["train", here / "run.yaml"], **environment)
    (code,) = outcome.codes
    folder = Path(config["output_dir"]) / config["name"]
    records = metrics(folder) if (folder / "metrics.jsonl").exists() else []
    return Ran(here, folder, records, outcome.out, outcome.err, code)


def trained(runs: Sequence[Ran]) -> None:
    """None was refused."""
    for ran in runs:
        assert ran.code == 0, ran.err


def values_are(read: Callable[[Ran], Any], *wanted: Any) -> Expectation:
    """What `read` finds in each run, run by run."""

    def check(runs: Sequence[Ran]) -> None:
        trained(runs)
        found = [read(ran) for ran in runs]
        assert found == [*wanted], found

    return check


def plan_says(name: str, *wanted: Any) -> Expectation:
    """That number of the run's arithmetic."""
    return values_are(lambda ran: ran.plan[name], *wanted)


def batches_are(*wanted: Sequence[int], training: bool = True) -> Expectation:
    """The number of images in each call of the network, run by run."""
    return values_are(lambda ran: tuple(len(images) for images in ran.images(training=training)), *map(tuple, wanted))


def sizes_are(*wanted: Sequence[int]) -> Expectation:
    """The height in pixels of the images of each training step, run by run."""
    return values_are(lambda ran: tuple(images.shape[2] for images in ran.images()), *map(tuple, wanted))


def steps_evaluated(*wanted: Sequence[int]) -> Expectation:
    return values_are(lambda ran: tuple(record["step"] for record in ran.of("eval")), *map(tuple, wanted))


def steps_saved(*wanted: Sequence[int]) -> Expectation:
    return values_are(lambda ran: tuple(ran.checkpoints), *map(tuple, wanted))


def has_file(name: str, *wanted: bool) -> Expectation:
    """Whether some file of the run's folder is called that, or lies in a folder that is."""

    def there(ran: Ran) -> bool:
        return any(name in Path(file).parts for file in ran.files)

    return values_are(there, *wanted)


def rates_are(*wanted: Sequence[float]) -> Expectation:
    """The learning rate of every step, as logged and as the optimizer holds it; the losses are equal as long as it is."""

    def check(runs: Sequence[Ran]) -> None:
        trained(runs)
        for ran, rates in zip(runs, wanted, strict=True):
            torch.testing.assert_close(ran.rates, [*rates], rtol=1e-9, atol=0)
            assert [*ran.held] == [[rate] for rate in ran.rates], ran.held
        for one, other in itertools.combinations(runs, 2):
            pairs = enumerate(zip(one.rates, other.rates, strict=True), start=1)
            differing = next((step for step, (a, b) in pairs if a != b), None)
            wanted_step = None if differing is None else differing + 1
            assert first_difference(one, other) == wanted_step, (one.losses, other.losses)

    return check


def losses_differ_from(step: int, *, close: float = 0.0) -> Expectation:
    """Each two runs have the same losses before that step (counted from 1), and there they have not.

    With `close`, the same means within so much of each other.
    """

    def check(runs: Sequence[Ran]) -> None:
        trained(runs)
        for one, other in itertools.combinations(runs, 2):
            assert first_difference(one, other, close) == step, (one.losses, other.losses)

    return check


def first_difference(one: Ran, other: Ran, close: float = 0.0) -> int | None:
    """The step, counted from 1, of the first losses that differ."""
    for step, (a, b) in enumerate(zip(one.losses, other.losses, strict=False), start=1):
        if abs(a - b) > close * abs(a):
            return step
    return None


def losses_equal(runs: Sequence[Ran]) -> None:
    """All training losses, to the bit, as far as the shortest run goes."""
    trained(runs)
    for ran in runs[1:]:
        assert first_difference(runs[0], ran) is None


def losses_close(runs: Sequence[Ran], close: float = 1e-4) -> None:
    """All training losses, within that share of each other."""
    trained(runs)
    for ran in runs[1:]:
        assert first_difference(runs[0], ran, close) is None, (runs[0].losses, ran.losses)


def results_equal(runs: Sequence[Ran]) -> None:
    """The last evaluation, to the bit."""
    trained(runs)
    for ran in runs[1:]:
        assert ran.of("eval")[-1] == runs[0].of("eval")[-1]


def results_differ(runs: Sequence[Ran]) -> None:
    """The loss of the last evaluation."""
    trained(runs)
    for one, other in itertools.combinations(runs, 2):
        assert one.of("eval")[-1]["loss"] != other.of("eval")[-1]["loss"]


def weights_differ_in(*names: str) -> Expectation:
    """Exactly these tensors of model.safetensors differ between each two runs."""

    def check(runs: Sequence[Ran]) -> None:
        trained(runs)
        for one, other in itertools.combinations([ran.weights for ran in runs], 2):
            assert {name for name in one if not torch.equal(one[name], other[name])} == {*names}

    return check


def images_equal(runs: Sequence[Ran]) -> None:
    """What the network is given in training, to the bit."""
    trained(runs)
    for ran in runs[1:]:
        for one, other in zip(runs[0].images(), ran.images(), strict=True):
            assert torch.equal(one, other)


def images_differ(runs: Sequence[Ran]) -> None:
    """What the network is given in training, at the first step already."""
    trained(runs)
    for one, other in itertools.combinations(runs, 2):
        assert not torch.equal(one.images()[0], other.images()[0])


def evaluated_images_equal(runs: Sequence[Ran]) -> None:
    """What the network is given in evaluation, to the bit."""
    trained(runs)
    for ran in runs[1:]:
        for one, other in zip(runs[0].images(training=False), ran.images(training=False), strict=True):
            assert torch.equal(one, other)


def refused(*wanted: str | None) -> Expectation:
    """Run by run: the key's own message, as a part of what is printed; None for a run that trains."""

    def check(runs: Sequence[Ran]) -> None:
        for ran, message in zip(runs, wanted, strict=True):
            if message is None:
                trained([ran])
            else:
                assert ran.code == 2
                assert message in ran.err, ran.err

    return check


def says(*wanted: str | None, stream: str = "err", code: int = 0) -> Expectation:
    """Run by run: that text on stderr (or stdout); None for a run that prints nothing there."""

    def check(runs: Sequence[Ran]) -> None:
        for ran, text in zip(runs, wanted, strict=True):
            printed = getattr(ran, stream)
            assert ran.code == code, ran.err
            assert (printed == "") if text is None else (text in printed), printed

    return check
