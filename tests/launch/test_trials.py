"""distcnn trials: ordinary runs, kept when the command comes again, and added up as a statistician would."""

import json
import re
import signal

import numpy as np
import pytest

from distcnn.trials.picture import write_picture
from distcnn.trials.summary import paired, summarise, summary
from tests.ranks import run_ranks, start
from tests.records import losses, metrics, steps


@pytest.fixture
def configs(tmp_path):
    """Two small runs, the second with a larger learning rate."""
    paths = []
    for name, lr in (("slow", 0.001), ("quick", 0.05)):
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(
            f"output_dir: {tmp_path / 'runs'}\n"
            "data: {source: synthetic, args: {train: 200, test: 101}, image_size: 16}\n"
            f"optim: {{name: sgd, lr: {lr}}}\nmodel: {{name: resnet9, args: {{width: 4}}}}\n"
            "train: {duration: 2ep, batch_size: 20, threads: 1}\ntracking: {wandb: disabled, report: false}\n"
        )
    return paths


def test_two_configs_over_shared_seeds_equal_the_same_runs_by_hand(configs, tmp_path):
    arguments = ["trials", configs[0], "-n", "3", "--vs", configs[1], "--parallel", "2", "--json"]
    outcome = run_ranks(arguments)
    assert outcome.codes == [0], outcome.err
    found = json.loads(outcome.out.splitlines()[-1])
    runs = tmp_path / "runs"
    by_hand = run_ranks(["train", configs[1], "--seed", "1", "--name", "by-hand"])
    assert by_hand.codes == [0], by_hand.err
    assert losses(runs / "by-hand") == losses(runs / "quick-seed1")
    accuracies = {
        name: [metrics(runs / f"{name}-seed{seed}", "eval")[-1]["accuracy"] for seed in range(3)]
        for name in ("slow", "quick")
    }
    for name, values in accuracies.items():
        assert [trial["accuracy"] for trial in found["configs"][name]["trials"]] == values
        assert found["configs"][name]["accuracy"]["mean"] == pytest.approx(np.mean(values))
    difference = np.subtract(accuracies["quick"], accuracies["slow"])
    assert found["difference"]["mean"] == pytest.approx(difference.mean())
    assert json.loads((runs / "slow-vs-quick-trials.json").read_text()) == found
    assert "slow" in (runs / "slow-vs-quick-trials.html").read_text()
    assert f"{100 * difference.mean():+.2f} points" in outcome.out

    # Again: nothing is trained, the table is the same. With one seed more, only that one is.
    before = {path: path.read_bytes() for path in runs.glob("*/metrics.jsonl")}
    again = run_ranks(arguments)
    assert json.loads(again.out.splitlines()[-1]) == found
    more = run_ranks(["trials", configs[0], "-n", "4"])
    assert more.codes == [0], more.err
    assert more.out.count(" in ") == 1
    assert "slow-seed3: " in more.out
    assert all(path.read_bytes() == text for path, text in before.items())
    # Another run under these names is refused, and a longer one goes on.
    other = run_ranks(["trials", configs[0], "-n", "1", "--optim.lr", "0.5"])
    assert other.codes == [2]
    assert "slow-seed0: was trained with other settings: optim.lr was 0.001, is 0.5" in other.err
    longer = run_ranks(["trials", configs[0], "-n", "1", "--train.duration", "3ep"])
    assert longer.codes == [0], longer.err
    assert [line["step"] for line in metrics(runs / "slow-seed0", "train")] == list(range(1, 31))


def test_a_signal_stops_the_trial_under_way_and_the_command_goes_on_from_there(configs, tmp_path):
    straight = run_ranks(["train", configs[0], "--seed", "0", "--train.duration", "40ep", "--name", "straight"])
    assert straight.codes == [0], straight.err
    arguments = ["trials", configs[0], "-n", "1", "--train.duration", "40ep"]
    run = tmp_path / "runs" / "slow-seed0"
    with start(arguments) as command:
        command.until(lambda: steps(run))
        command[0].send_signal(signal.SIGTERM)
        outcome = command.outcome()
    assert outcome.codes == [75], outcome.err
    assert "the same command continues" in outcome.err
    assert len(metrics(run, "train")) < 400
    again = run_ranks(arguments)
    assert again.codes == [0], again.err
    assert losses(run) == losses(tmp_path / "runs" / "straight")


def test_a_failing_trial_does_not_hide_the_others(configs, tmp_path):
    (tmp_path / "runs" / "slow-seed1").mkdir(parents=True)
    (tmp_path / "runs" / "slow-seed1" / "checkpoints").write_text("not a folder")
    outcome = run_ranks(["trials", configs[0], "-n", "3", "--train.duration", "1ep", "--json"])
    assert outcome.codes == [1]
    found = json.loads(outcome.out.splitlines()[-1])
    assert [trial["seed"] for trial in found["configs"]["slow"]["trials"]] == [0, 2]
    assert "1 of 3 trials failed: slow-seed1" in outcome.err
    assert "slow-seed1.log" in outcome.err


def test_a_trial_whose_log_has_damaged_lines_is_what_its_whole_lines_say(configs, tmp_path):
    arguments = ["trials", configs[0], "-n", "1", "--json"]
    first = run_ranks(arguments)
    assert first.codes == [0], first.err
    found = json.loads(first.out.splitlines()[-1])
    run = tmp_path / "runs" / "slow-seed0"
    log = run / "metrics.jsonl"
    whole = log.read_bytes().splitlines(keepends=True)
    kinds = [json.loads(line)["kind"] for line in whole]
    train, last_eval = kinds.index("train"), len(kinds) - 1 - kinds[::-1].index("eval")
    assert json.loads(whole[-1])["event"] == "done"
    warning = f"warning: {run}: metrics.jsonl: 1 damaged line left out"

    def without(line):
        log.write_bytes(b"".join([*whole[:line], bytes(70), b"\n", *whole[line + 1 :]]))
        return log.read_bytes()

    # Done is done, without a line of a training step: nothing is trained.
    written = without(train)
    outcome = run_ranks(arguments)
    assert outcome.codes == [0], outcome.err
    assert warning in outcome.err
    assert json.loads(outcome.out.splitlines()[-1]) == found
    assert log.read_bytes() == written

    # Without the evaluation that counts, an earlier one does not stand for it.
    written = without(last_eval)
    outcome = run_ranks(arguments)
    assert outcome.codes == [2]
    assert "slow-seed0: metrics.jsonl: 1 damaged line left out; metrics.jsonl: no evaluation of the last" in outcome.err
    assert log.read_bytes() == written

    # Without its end, the run goes on from its last checkpoint, which leaves the damaged line out.
    without(len(whole) - 1)
    outcome = run_ranks(arguments)
    assert outcome.codes == [0], outcome.err
    assert warning in outcome.err
    assert json.loads(outcome.out.splitlines()[-1]) == found
    assert [line["event"] for line in metrics(run, "event")][-2:] == ["resumed", "done"]


def test_bad_requests_are_refused_before_anything_runs(configs, tmp_path):
    outcome = run_ranks(["trials", configs[0], "-n", "0", "--parallel", "0"])
    assert outcome.codes == [2]
    assert "-n 0" in outcome.err
    assert "--parallel 0" in outcome.err
    same = run_ranks(["trials", configs[0], "-n", "2", "--vs", configs[0]])
    assert same.codes == [2]
    assert "its name, slow, is that of" in same.err
    assert not (tmp_path / "runs").exists()


def test_the_statistics_are_those_of_scipy():
    from scipy import stats

    rng = np.random.default_rng(0)
    a, b = rng.normal(0.9, 0.01, 7), rng.normal(0.91, 0.01, 7)
    one = summary(a.tolist())
    interval = stats.ttest_1samp(a, 0).confidence_interval(0.95)
    assert (one.mean, one.deviation) == pytest.approx((a.mean(), a.std(ddof=1)))
    assert (one.low, one.high) == pytest.approx(tuple(interval))
    found = paired(a.tolist(), b.tolist())
    test = stats.ttest_rel(b, a)
    assert found["p"] == pytest.approx(test.pvalue)
    assert (found["low"], found["high"]) == pytest.approx(tuple(test.confidence_interval(0.95)))


def test_what_cannot_be_computed_is_none():
    assert (summary([0.5]).deviation, summary([0.5]).low) == (None, None)
    assert paired([0.5], [0.6])["p"] is None
    assert paired([0.5, 0.5], [0.75, 0.75])["p"] is None
    record = {"accuracy": 0.5, "loss": None}
    found = summarise({"a": {0: record}, "b": {1: record}})
    assert "difference" not in found
    assert "loss" not in found["configs"]["a"]


def test_as_a_slurm_array_each_element_is_a_seed(configs):
    outcome = run_ranks(
        ["trials", configs[0], "-n", "3", "--first-seed", "2", "--vs", configs[1], "--slurm", "--print"]
    )
    assert outcome.codes == [0], outcome.err
    assert outcome.out.count("#SBATCH --array=2-4") == 2
    assert outcome.out.count('element="$SLURM_ARRAY_TASK_ID"') == 2
    assert '--seed "$element" --name "$name-seed$element"' in outcome.out


# Two GPUs are pretended in the command's own process only; its trials are real, and see none.
ON_GPUS = """
import subprocess, sys
import torch
torch.cuda.device_count = lambda: 2
class Popen(subprocess.Popen):
    def __init__(self, command, **options):
        print("seen:", options["env"]["CUDA_VISIBLE_DEVICES"])
        super().__init__(command, **options)
subprocess.Popen = Popen
from distcnn.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_each_trial_gets_one_of_the_commands_own_gpus(configs, tmp_path):
    arguments = ["trials", configs[0], "-n", "3", "--train.duration", "1ep"]
    outcome = run_ranks(arguments, cwd=tmp_path, program=["-c", ON_GPUS], CUDA_VISIBLE_DEVICES="4, 5")
    assert outcome.codes == [0], outcome.out + outcome.err
    seen = [line.partition(": ")[2] for line in outcome.out.splitlines() if line.startswith("seen:")]
    assert sorted(seen[:2]) == ["4", "5"]
    assert seen[2:] in (["4"], ["5"])  # where the first one to end was


def test_the_picture_has_a_row_for_each_config_and_its_names_stay_text(tmp_path):
    hostile = "</script><b>$x$"
    accuracies = {0: 0.5, 1: 0.75}
    rows = {
        name: {seed: {"accuracy": one, "loss": None} for seed, one in accuracies.items()} for name in ("a", hostile)
    }
    write_picture(summarise(rows), tmp_path / "picture.html")
    text = (tmp_path / "picture.html").read_text()
    assert "<b>$x$" not in text
    assert re.findall(r"<(?:script|link)[^>]*(?:src|href)=", text) == []  # nothing is asked of the network
    drawn = text.rpartition("Plotly.newPlot(")[2]
    assert drawn.count('"x":[0.5,0.75]') == 2
    assert drawn.count('"symbol":"diamond"') == 2
