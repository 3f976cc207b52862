"""A stranger's package adds one part of every kind by entry points, no file of distcnn's touched: a real run uses them all."""

import json
import os
from pathlib import Path

import pytest

from tests.more_parts import PARTS, install_more_parts
from tests.ranks import free_port, run_ranks
from tests.records import metrics

PATH = "PYTHONPATH"
CONFIG = """
output_dir: {output}
data: {{source: more-stripes, args: {{count: 48}}, image_size: 8, augment: [{{more-inverted: {{share: 0.25}}}}]}}
model: {{name: more-linear, args: {{bias: false}}}}
loss: {{name: more-margin, args: {{margin: 0.5}}}}
optim: {{name: more-sign, lr: 0.01, args: {{shrink: 0.5}}}}
schedule: {{name: more-halved, args: {{every: 2step}}}}
eval: {{metrics: [{{more-rank: {{first: 1}}}}]}}
train: {{duration: 4step, batch_size: 24, micro_batch: 4, threads: 1, device: cpu}}
tracking: {{backends: [{{more-text: {{file: more.txt}}}}], wandb: disabled, report: false, console: false}}
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    install_more_parts(folder)
    return folder


@pytest.fixture(scope="module")
def path(package) -> str:
    return os.pathsep.join([str(package), *filter(None, [os.environ.get(PATH)])])


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    file = folder / "more.yaml"
    file.write_text(CONFIG.format(output=folder / "runs"))
    return file


@pytest.fixture(scope="module")
def run(config, path) -> Path:
    """A run of two ranks, started by the stranger's launcher."""
    shared = {"MORE_SIZE": "2", "MORE_PORT": str(free_port()), PATH: path}
    outcome = run_ranks(["train", config], [shared | {"MORE_RANK": str(rank)} for rank in range(2)])
    assert outcome.codes == [0, 0], outcome.err
    return config.parent / "runs" / "more"


def test_every_part_has_done_what_it_says(run):
    records = metrics(run)
    started = next(record for record in records if record["kind"] == "event")
    assert started["environment"]["launcher"] == "more"
    assert started["environment"]["plan"]["world_size"] == 2
    train = [record for record in records if record["kind"] == "train"]
    assert [record["lr"] for record in train] == [0.01, 0.01, 0.005, 0.005]
    evaluation = [record for record in records if record["kind"] == "eval"][-1]
    assert evaluation["total"] == 48
    assert list(evaluation["per_class"]) == ["rows", "columns"]
    # Of two classes the true one is in the first place where it is predicted, and in the second otherwise.
    assert evaluation["more-rank_1"] == 2 - evaluation["accuracy"]
    lines = (run / "more.txt").read_text().splitlines()
    assert f"4 test/accuracy {evaluation['accuracy']}" in lines
    assert lines[-1] == "done"


def test_its_model_is_evaluated_and_exported_in_its_format(run, path):
    evaluated = run_ranks(["evaluate", run], **{PATH: path})
    assert evaluated.codes == [0], evaluated.err
    last = [record for record in metrics(run) if record["kind"] == "eval"][-1]
    assert json.loads(evaluated.out.splitlines()[-1]) == last
    exported = run_ranks(["export", run, "--format", "more-state"], **{PATH: path})
    assert exported.codes == [0], exported.err
    assert (run / "export" / "model.pickle").is_file()


@pytest.mark.parametrize(
    ("argument", "value", "texts"),
    [
        ("model.args.bais", "1", ["model.args.bais = 1", "did you mean bias? more-linear takes bias"]),
        ("optim.args.shrink", "much", ["optim.args.shrink = much", "valid number"]),
        ("schedule.args.each", "1ep", ["schedule.args.each", "more-halved takes every"]),
        ("loss.args.margn", "1", ["loss.args.margn", "did you mean margin?"]),
        ("eval.metrics", "[{more-rank: {last: 1}}]", ["more-rank: last: ", "it takes first"]),
        ("data.args.count", "few", ["data.args.count = few", "valid integer"]),
        ("data.augment", "[{more-inverted: {share: x}}]", ["more-inverted: share: ", "valid number"]),
        ("tracking.backends", "[{more-text: {path: x}}]", ["more-text: path: ", "it takes file"]),
        ("model.name", "more-liner", ["did you mean more-linear"]),
    ],
)
def test_its_arguments_are_checked_like_our_own(config, path, argument, value, texts):
    outcome = run_ranks(["train", config, f"--{argument}", value], **{PATH: path})
    assert outcome.codes == [2]
    assert outcome.err.splitlines()[0] == "distcnn: bad input"
    for text in texts:
        assert text in outcome.err, outcome.err


def test_its_command_has_help_and_runs(path):
    helped, said = (run_ranks(words, **{PATH: path}) for words in (["--help"], ["more-hello", "--times", "2"]))
    assert "more-hello" in helped.out
    assert "Say hello" in helped.out
    assert (said.codes, said.out.strip()) == ([0], "hello hello")


def test_without_the_package_its_names_are_unknown(config):
    outcome = run_ranks(["train", config])
    assert outcome.codes == [2]
    for name, _ in [PARTS[kind] for kind in ("models", "optimizers", "schedules", "sources")]:
        assert f"= {name} (" in outcome.err, outcome.err
