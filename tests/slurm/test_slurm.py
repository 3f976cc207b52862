"""Jobs on a real Slurm cluster of two nodes: the same bits as elsewhere, through time limits, preemption, lost nodes."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.needs import require
from tests.ranks import run_torchrun
from tests.records import events, losses, metrics, steps, weights
from tests.slurm.cluster import Cluster

SLURM = Path(__file__).parents[2] / "slurm"
FIXED = ["--train.threads", "1"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    require("slurmctld", "slurmd", "srun", "munged", "ip", root=True)
    with tempfile.TemporaryDirectory(prefix="distcnn-slurm-") as folder:
        Path(folder).chmod(0o755)  # munged insists
        up = Cluster(Path(folder) / "root")
        try:
            up.power("up")
            yield up
        finally:
            up.power("down")


@pytest.fixture
def long(tmp_path):
    """About a minute on two ranks with one thread each; a checkpoint every 20 steps."""
    config = tmp_path / "long.yaml"
    config.write_text(
        f"output_dir: {tmp_path / 'runs'}\n"
        "data: {source: synthetic, args: {train: 2000, test: 300}, augment: [{crop: {padding: 2}}, flip]}\n"
        "model: {name: resnet9, args: {width: 8}}\n"
        "optim: {name: sgd, lr: 0.02}\n"
        "train: {duration: 600step, batch_size: 240, micro_batch: 60, threads: 1, timeout: 60}\n"
        "eval: {every: 100step}\n"
        "checkpoint: {every: 20step}\n"
        "tracking: {wandb: offline, console: false}\n"
    )
    return config


def wandb_ids(folder):
    return {path.name.rpartition("-")[2] for path in (folder / "wandb").glob("*run-*")}


def assert_as_undisturbed(run, reference):
    """No step missing or twice, the same losses and evaluations, the same final weights to the bit."""
    assert losses(run) == losses(reference)
    assert [line["step"] for line in metrics(run, "train")] == list(range(1, len(metrics(reference, "train")) + 1))
    assert weights(run) == weights(reference)


def test_srun_and_batch_jobs_give_the_bits_of_torchrun(cluster, synthetic, tmp_path):
    runs = tmp_path / "runs"
    assert run_torchrun(["train", synthetic, *FIXED, "--name", "reference"], 2).codes == [0]
    # Jobs on the same nodes at once, and a plain srun: none takes another's port.
    jobs = [
        cluster.submit(
            synthetic, "--nodes", 2, "--option", "nodes=2", "--launcher", launcher, *FIXED, "--name", launcher
        )
        for launcher in ("srun", "torchrun", "elastic")
    ]
    # The shipped scripts, with fake GPUs to be counted; the ranks themselves are on CPUs.
    for name in ("srun", "torchrun", "elastic"):
        sizes = ["--nodes=2", "--gpus-per-node=1", "--cpus-per-task=1", "--time=10", f"--output={tmp_path}/{name}.out"]
        sizes += [] if name == "elastic" else ["--ntasks-per-node=1"]
        submitted = cluster.run(
            "sbatch", "--parsable", *sizes, SLURM / f"{name}.sbatch", synthetic, *FIXED, "--name", f"shipped-{name}"
        )
        jobs.append(submitted.stdout.strip())
    train = [sys.executable, "-m", "distcnn", "train", synthetic, *FIXED]
    for name, engine in (("plain", "ddp"), ("accelerate", "accelerate")):
        cluster.run("srun", "--nodes=2", "--ntasks-per-node=1", *train, "--name", name, "--engine", engine)
    cluster.finish(*jobs)
    launched = ("srun", "torchrun", "elastic")
    for name in (*launched, *(f"shipped-{name}" for name in launched), "plain", "accelerate"):
        assert losses(runs / name) == losses(runs / "reference"), name


def test_bad_input_is_neither_requeued_nor_retried(cluster, synthetic, tmp_path):
    (tmp_path / "runs").mkdir()
    for launcher in ("srun", "torchrun", "elastic"):
        job = cluster.submit(synthetic, "--nodes", 2, "--launcher", launcher, "--name", launcher, "--option", "export=ALL,FAULT=1",
                             "--data.cache_dir", "/dev/null/no", "--data.source", "folder", "--data.root", tmp_path / "none")  # fmt: skip
        cluster.until(lambda job=job: cluster.field(job, "JobState") in ("FAILED", "COMPLETED"), "the job to fail")
        assert cluster.field(job, "ExitCode") == "2:0"
        assert cluster.field(job, "Restarts") == "0"
        output = (tmp_path / "runs" / f"{launcher}-{job}.out").read_text()
        assert output.count("distcnn: bad input") == 1, output


def test_agents_that_do_not_know_of_each_other_are_refused(cluster, synthetic):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    command = ["srun", "--nodes=2", "--ntasks-per-node=1", *torchrun, "-m", "distcnn", "train", synthetic]
    done = cluster.run(*command, check=False)
    assert done.returncode != 0
    assert "SLURM_STEP_NUM_TASKS = 2" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun"])  # srun takes the same path with less in it: give it by hand
def test_a_time_limit_a_preemption_and_a_power_cut(cluster, long, tmp_path, launcher):
    """One run folder, one W&B id, a seamless history, the undisturbed run's weights to the bit."""
    assert run_torchrun(["train", long, "--name", "reference"], 2).codes == [0]
    run = tmp_path / "runs" / "disturbed"
    job = cluster.submit(
        long, "--nodes", 2, "--launcher", launcher, "--name", "disturbed", "--time", "00:10:00", "--grace", 20
    )

    def restarted(times):
        cluster.until(lambda: cluster.field(job, "Restarts") == str(times), f"restart {times}")
        cluster.until(lambda: cluster.field(job, "JobState") == "RUNNING", "the job to run again")
        return steps(run)

    cluster.until(lambda: steps(run) > 40, "the first steps")
    cluster.run("scontrol", "update", f"jobid={job}", "EndTime=now+50")  # the warning comes 20 s before
    before = restarted(1)
    cluster.run("scontrol", "update", f"jobid={job}", "TimeLimit=10")
    cluster.until(lambda: steps(run) > before, "more steps")
    cluster.run(
        "sbatch", "--partition=high", "--nodes=2", "--exclusive", f"--output={tmp_path / 'high.out'}", "--wrap=sleep 2"
    )
    before = restarted(2)
    cluster.until(lambda: steps(run) > before, "more steps")
    cluster.power("poweroff", "node2")
    cluster.until(lambda: cluster.field(job, "Restarts") == "3", "Slurm to notice the lost node")
    # Slurm tells the lost node once a minute that the job has ended there, and the node would end its next life. An
    # ordinary cluster lets a requeued job wait for two minutes; this one's credentials, and so its waits, are short.
    cluster.patient.add(job)
    cluster.run("scontrol", "update", f"jobid={job}", "StartTime=now+75")
    cluster.power("poweron", "node2")
    cluster.finish(job)
    assert cluster.field(job, "JobState") == "COMPLETED"
    assert_as_undisturbed(run, tmp_path / "runs" / "reference")
    assert len(wandb_ids(run)) == 1
    folders = [path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    assert sorted(folders) == ["disturbed", "reference"]
    assert [line["event"] for line in events(run)] == ["stopped", "resumed", "stopped", "resumed", "resumed"]


@pytest.mark.slow
def test_of_an_array_only_the_preempted_element_is_requeued(cluster, long, tmp_path):
    """slurm/array.sbatch as it is, four seeds; fake GPUs are there to be counted."""
    short = ["--train.duration", "60step", "--eval.every", "60step", "--tracking.wandb", "disabled"]
    submitted = cluster.run("sbatch", "--parsable", "--array=0-3", "--gpus-per-node=0", "--cpus-per-task=1", "--time=10",
                            f"--output={tmp_path}/%A_%a.out", SLURM / "array.sbatch", long, *short, "--name=mine")  # fmt: skip
    array = submitted.stdout.strip()
    runs = tmp_path / "runs"
    cluster.until(lambda: steps(runs / "mine-seed3") > 20, "element 3 to train")
    # As a scheduler's warning: to the batch shell alone. Element 3 is the last: its job has the array's own number.
    cluster.run("scancel", "--batch", "--signal=USR1", f"{array}_3")
    cluster.until(lambda: "queue" in (tmp_path / f"{array}_3.out").read_text(), "element 3 to be requeued")
    elements = [f"{array}_{i}" for i in range(4)]
    cluster.finish(*elements)
    assert [cluster.field(element, "Restarts") for element in elements] == ["0", "0", "0", "1"]
    assert {cluster.field(element, "JobState") for element in elements} == {"COMPLETED"}
    for seed in range(4):
        assert run_torchrun(["train", long, *short, "--seed", seed, "--name", f"by-hand-{seed}"], 1).codes == [0]
        assert losses(runs / f"mine-seed{seed}") == losses(runs / f"by-hand-{seed}")
        assert weights(runs / f"mine-seed{seed}") == weights(runs / f"by-hand-{seed}")


@pytest.mark.slow
def test_elastic_goes_on_with_the_node_that_is_left(cluster, long, tmp_path):
    cluster.until_idle()
    run = tmp_path / "runs" / "elastic"
    job = cluster.submit(
        long,
        "--launcher",
        "elastic",
        "--nodes",
        2,
        "--name",
        "elastic",
        "--tracking.wandb",
        "disabled",
        "--train.duration",
        "700step",
    )
    cluster.until(lambda: steps(run) > 60, "the first steps")
    cluster.power("poweroff", "node2")
    lost = time.monotonic()
    cluster.until(lambda: len(events(run)) == 1, "the first node to go on")
    print(f"went on {time.monotonic() - lost:.0f} s after the power cut")
    (resumed,) = events(run)
    assert "world_size was 2, is 1" in resumed["message"]
    assert resumed["step"] >= 60
    cluster.until(lambda: cluster.node("node2").startswith("down"), "Slurm to notice")
    cluster.power("poweron", "node2")
    cluster.until(lambda: cluster.node("node2") == "idle", "node2 to be back")
    # The next restart, here by the scheduler's warning, finds both nodes.
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.until(lambda: cluster.field(job, "Restarts") == "1", "the job to be requeued")
    cluster.finish(job)
    assert cluster.field(job, "JobState") == "COMPLETED"
    messages = [line["message"] for line in events(run)]
    assert "world_size was 1, is 2" in messages[-1]
    assert [line["step"] for line in metrics(run, "train")] == list(range(1, 701))
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["event"] == "done"
