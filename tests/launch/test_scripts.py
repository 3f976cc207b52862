"""The scripts in launch/ as a user calls them: real launchers, real ranks, real signals."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from distcnn.checkpoint.file import Checkpoints
from distcnn.slurm import batch_script
from tests.needs import require
from tests.ranks import TIMEOUT, Ranks, clean_environment, run_ranks, torchrun
from tests.records import events, metrics

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = ("torchrun", "mpirun", "accelerate")
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
# An empty CUDA_VISIBLE_DEVICES: no GPU, whatever this machine has.
ENVIRONMENT = {"PATH": PATH, "CUDA_VISIBLE_DEVICES": "", "OMPI_ALLOW_RUN_AS_ROOT": "1",
               "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # fmt: skip
SHORT = ["--train.duration", "2step", "--train.threads", "1", "--train.device", "cpu"]


def script(name, *arguments, **environment):
    command = [LAUNCH / f"{name}.sh", *map(str, arguments)]
    environment = clean_environment() | ENVIRONMENT | environment
    return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=TIMEOUT)


def losses(config):
    return [line["loss"] for line in metrics(config.parent / "runs" / config.stem) if line["kind"] != "event"]


PLAIN: dict[int, list[float]] = {}  # by number of ranks: the losses of ranks that no launcher started


def plain_losses(config, ranks):
    if ranks not in PLAIN:
        outcome = run_ranks(["train", config, *SHORT, "--output_dir", config.parent / "plain" / "runs"], ranks)
        assert outcome.codes == [0] * ranks, outcome.err
        PLAIN[ranks] = losses(config.parent / "plain" / config.name)
        assert len(PLAIN[ranks]) == 3  # two steps and an evaluation
    return PLAIN[ranks]


@pytest.mark.parametrize(
    ("name", "options", "ranks", "gpus", "launcher"),
    [
        ("torchrun", ["-n", 2], 2, "", "torchrun"),
        ("mpirun", ["-n", 2], 2, "", "mpirun"),
        ("accelerate", ["-n", 2], 2, "", "accelerate"),
        ("accelerate", [], 2, "0,1", "accelerate"),  # launched as on two GPUs; the ranks themselves stay on the CPU
    ],
    ids=["torchrun", "mpirun", "accelerate on mpirun", "accelerate on GPUs"],
)
def test_the_losses_are_those_of_plain_ranks(synthetic, name, options, ranks, gpus, launcher):
    if name == "mpirun" or (name, gpus) == ("accelerate", ""):
        require("mpirun")
    done = script(name, *options, synthetic, *SHORT, CUDA_VISIBLE_DEVICES=gpus)
    assert done.returncode == 0, done.stderr
    assert f"20 per rank × {ranks} rank" in done.stdout
    assert re.search(rf"^launcher +{launcher}, ", done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout  # it is no terminal
    assert losses(synthetic) == plain_losses(synthetic, ranks)


def test_bad_input_ends_with_2_and_is_said_once(synthetic, tmp_path):
    """torchrun itself ends with 1; the file of a caller is used, and what an earlier run left in it is not."""
    file = tmp_path / "exit_code"
    file.write_text("75")
    given = ["torchrun", "-n", 2, synthetic, "--optim.args.momentum", "1.5"]
    done = script(*given, DISTCNN_EXIT_CODE_FILE=str(file))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("optim.args.momentum = 1.5") == 1
    assert file.read_text().strip() == "2"


def processes_of(config):
    def mentions(process):
        try:
            return str(config) in process.cmdline()
        except psutil.Error:
            return False

    return [process for process in psutil.process_iter() if mentions(process)]


class LongRun:
    """launch/torchrun.sh on two ranks, with a checkpoint every third step, in the middle of a long training."""

    def __init__(self, config, *options):
        self.config, self.folder = config, config.parent / "runs" / config.stem
        endless = ["--train.duration", "1000000step", "--train.threads", "1", "--eval.every", "1000000step"]
        saving = ["--checkpoint.every", "3step", "--checkpoint.resume", "auto", "--tracking.log_every", "1"]
        command = [LAUNCH / "torchrun.sh", "-n", "2", *options, config, *endless, *saving]
        self.script = Ranks([(command, clean_environment() | ENVIRONMENT)])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in processes_of(self.config):
            process.kill()
        self.script.close()

    @property
    def output(self):
        return self.script.out() + self.script.err()

    def wait_for(self, what):
        """Poll the complete lines of metrics.jsonl until `what` of them holds; returns them."""
        found = []

        def holds():
            if (self.folder / "metrics.jsonl").exists():
                found[:] = metrics(self.folder)
            return found and what(found)

        self.script.until(holds)
        return found

    def stop(self, number):
        self.script[0].send_signal(number)
        (code,) = self.script.wait()
        return code

    def assert_stopped_and_saved(self):
        assert processes_of(self.config) == []
        stopped = events(self.folder)[-1]
        assert stopped["event"] == "stopped"
        newest, damaged = Checkpoints(self.folder / "checkpoints", 2).newest_valid()
        assert not damaged
        assert newest.load()["progress"]["step"] == stopped["step"]
        return stopped


def test_term_saves_and_ends_with_75(synthetic):
    with LongRun(synthetic) as run:
        run.wait_for(lambda lines: len(lines) > 4)
        assert run.stop(signal.SIGTERM) == 75, run.output
        assert "SIGTERM" in run.assert_stopped_and_saved()["message"]


@pytest.mark.slow
def test_a_killed_rank_is_started_again_but_not_after_usr1(synthetic):
    require("pkill")
    with LongRun(synthetic, "-r", "2") as run:
        run.wait_for(lambda lines: len(lines) > 4)
        ranks = [process for process in processes_of(synthetic) if "-u" in process.cmdline()]
        assert len(ranks) == 2
        ranks[1].kill()
        lines = run.wait_for(
            lambda lines: lines[-1]["kind"] == "train" and any(line.get("event") == "resumed" for line in lines)
        )
        assert [line["event"] for line in lines if "event" in line] == ["started", "resumed"]
        assert run.stop(signal.SIGUSR1) == 75, run.output
        assert "SIGUSR1" in run.assert_stopped_and_saved()["message"]
        assert len(events(run.folder)) == 2


DIES = """
import os
from pathlib import Path
from distcnn.models.simple import SimpleCNN

class DiesTwice(SimpleCNN):
    "Rank 1 is killed at its third update in its first two lives, or it cannot even be made."
    calls = 0
    def __init__(self, num_classes, image_size):
        super().__init__(num_classes, image_size)
        if os.environ.get("RANK") == "1" and os.environ.get("HOW") == "raises":
            raise MemoryError("rank 1 is broken")
    def forward(self, x):
        if self.training and x.device.type != "meta":
            self.calls += 1
            if self.calls == 3 and os.environ.get("RANK") == "1" and (lives := Path("lives")).stat().st_size < 2:
                with lives.open("a") as file:
                    file.write("x")
                os.kill(os.getpid(), 9)
        return super().forward(x)
"""


@pytest.mark.slow
def test_under_plain_torchrun_a_restarted_group_goes_on_from_its_checkpoint(synthetic, tmp_path):
    """No script, none of its variables: the ranks meet in a store that still holds what the dead ones have said."""
    (tmp_path / "dies.py").write_text(DIES)
    (tmp_path / "lives").touch()
    train = ["train", synthetic, "--model.name", "dies:DiesTwice", "--train.duration", "9step", "--checkpoint.every", "1step",
             "--train.micro_batch", "120", "--train.threads", "1", "--checkpoint.resume", "auto"]  # fmt: skip
    outcome = run_ranks(train, cwd=tmp_path, program=torchrun(2, "--max-restarts=2"), HOW="killed")
    assert outcome.codes == [0], outcome.err
    run = tmp_path / "runs" / "tiny"
    assert [line["event"] for line in events(run)] == ["resumed", "resumed"]
    assert (tmp_path / "lives").read_text() == "xx"
    assert run_ranks([*train, "--name", "straight"], 2, cwd=tmp_path).codes == [0, 0]
    straight = tmp_path / "runs" / "straight"
    assert [line["loss"] for line in metrics(run, "train")] == [line["loss"] for line in metrics(straight, "train")]
    assert (run / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_one_broken_rank_is_a_failure_and_not_a_wish_to_be_queued_again(synthetic, tmp_path):
    """torchrun ends the other ranks by SIGTERM, as a scheduler does that preempts."""
    (tmp_path / "dies.py").write_text(DIES)
    (tmp_path / "lives").touch()
    done = subprocess.run([LAUNCH / "torchrun.sh", "-n", "3", synthetic, "--model.name", "dies:DiesTwice"], cwd=tmp_path,
                          env=clean_environment() | ENVIRONMENT | {"HOW": "raises"}, text=True, capture_output=True, timeout=TIMEOUT)  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "MemoryError: rank 1 is broken" in done.stderr


@pytest.mark.parametrize(
    ("status", "said", "asked", "code"),
    [
        (0, "", "", 0),
        (0, "0", "", 0),
        (1, "", "", 1),
        (137, "", "", 137),
        (1, "2", "", 2),  # torchrun's 1
        (1, "75", "", 75),
        (143, "", "75", 75),  # before a rank could write
        (1, "75", "130", 130),  # Ctrl-C that was handed on as USR1
        (1, "130", "130", 130),
        (1, "1", "75", 1),  # the last save has failed
        (0, "", "75", 0),
        (137, "0", "", 0),  # srun, which waited for a dead node
        (143, "0", "75", 0),  # the signal came after the end
    ],
)
def test_the_exit_code_is_what_the_ranks_have_said(tmp_path, status, said, asked, code):
    file = tmp_path / "exit_code"
    file.write_text(said)
    command = ["bash", "-euc", '. "$1"; shift; exit_code "$@"', "-", ROOT / "slurm" / "rules.sh", str(status), asked]
    done = subprocess.run(
        command, env={"DISTCNN_EXIT_CODE_FILE": str(file)} | ENVIRONMENT, text=True, capture_output=True
    )
    assert (done.stdout, done.stderr, done.returncode) == (f"{code}\n", "", 0)


@pytest.mark.parametrize(
    ("element", "configs", "expected"),
    [
        ("", [], "distcnn: 0 configs: sbatch SCRIPT CONFIG.yaml"),
        ("", ["a.yaml", "b.yaml"], "distcnn: 2 configs: sbatch SCRIPT CONFIG.yaml"),
        ("2", ["a.yaml", "b.yaml"], "distcnn: 2 configs, none for element 2: sbatch SCRIPT CONFIG.yaml"),
    ],
)
def test_a_batch_script_without_a_config_of_its_own_ends_with_2(element, configs, expected):
    source = '. "$0/rules.sh"; . "$0/job.sh"'
    command = ["bash", "-c", f"mode=srun element={element} asked=; {source}", ROOT / "slurm", *configs, "--seed", "1"]
    done = subprocess.run(command, env=ENVIRONMENT, text=True, capture_output=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(expected)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_and_wrong_use(name):
    for option in ("-h", "--help"):
        done = script(name, option)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"usage: launch/{name}.sh")
    for arguments in ([], ["-z", "x.yaml"]):
        done = script(name, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"usage: launch/{name}.sh" in done.stderr


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("torchrun", ["-N", "2"], "-N 2 needs -m HOST:PORT"),
        ("torchrun", ["-N", "1:2", "-m", "host"], "-N 1:2 needs -m HOST:PORT"),
        ("torchrun", ["-N", "two"], "-N two: should be a number of nodes, or MIN:MAX"),
        ("torchrun", ["-n", "0x2"], "-n 0x2: should be a whole number of 1 or more"),
        ("torchrun", ["-r", "-1"], "-r -1: should be a whole number of 0 or more"),
        ("mpirun", ["-f", "no/such"], "-f no/such: no such file"),
        ("mpirun", ["-f", os.devnull], "-f /dev/null: no such file"),
        ("accelerate", ["-n", "0"], "-n 0: should be a whole number of 1 or more"),
        ("accelerate", ["-c", "no/such"], "-c no/such: no such file"),
        ("accelerate", ["-N", "2", "-i", "0"], "-N 2 needs -m HOST:PORT"),
        ("accelerate", ["-N", "2", "-m", "host:1"], "-N 2 needs -i INDEX"),
        ("accelerate", ["-N", "2", "-m", "host:1", "-i", "2"], "-i 2: should be below -N 2"),
    ],
)
def test_wrong_options_are_explained(name, options, expected):
    done = script(name, *options, "x.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"launch/{name}.sh: {expected}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["mpirun", "accelerate"])
def test_without_mpirun_the_message_says_so(tmp_path, name):
    for tool in ("bash", "dirname", "awk", "wc", "tr"):
        (tmp_path / tool).symlink_to(next(p for p in map(Path, os.get_exec_path()) if (p / tool).exists()) / tool)
    done = script(name, "-n", 2, "x.yaml", PATH=f"{tmp_path}{os.pathsep}{Path(sys.executable).parent}")
    assert done.returncode == 2
    assert done.stderr.startswith(f"launch/{name}.sh: needs mpirun")
    assert done.stderr.count("\n") == 1


# What accelerate.sh makes of what it finds: options, GPUs → Accelerate's file and arguments.
GPUS = {
    "one GPU": ([], 1, "one_gpu", {"num_processes": 1}),
    "all GPUs": ([], 8, "all_gpus", {"num_processes": 8}),
    "some GPUs": (["-n", 4], 8, "all_gpus", {"num_processes": 4}),
    "first node": (["-N", 2, "-i", 0, "-m", "host:29501"], 8, "several_nodes",
                   {"num_processes": 16, "num_machines": 2, "machine_rank": 0, "main_process_ip": "host",
                    "main_process_port": 29501}),
    "second node": (["-N", 2, "-i", 1, "-m", "host:29501", "-n", 3], 8, "several_nodes",
                    {"num_processes": 6, "num_machines": 2, "machine_rank": 1}),
    "one CPU rank": (["-n", 1], 0, "cpu", {"num_processes": 1, "cpu": True, "mpirun_hostfile": None}),
    "two CPU ranks": ([], 0, "cpu", {"num_processes": 2, "cpu": True}),
    "hosts": (["-f", "HOSTS"], 8, "cpu", {"num_processes": 6, "num_machines": 2, "main_process_ip": "host1",
                                          "mpirun_hostfile": "HOSTS"}),
}  # fmt: skip


@pytest.mark.parametrize("case", GPUS)
def test_accelerate_gets_the_right_file_and_arguments(tmp_path, case):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    options, gpus, file, expected = GPUS[case]
    if file == "cpu" and options != ["-n", 1]:
        require("mpirun")
    fakes = {"accelerate": 'printf "%s\\n" "$@"', "nvidia-smi": f'for i in $(seq {gpus}); do echo "GPU $i: H100"; done'}
    for name, lines in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    hosts = tmp_path / "hosts"
    hosts.write_text("# two\nhost1 slots=3\n\nhost2   slots=3 # same\n")
    options = [hosts if option == "HOSTS" else option for option in options]
    done = script("accelerate", *options, "x.yaml", "--optim.lr", "1", PATH=f"{tmp_path}{os.pathsep}{PATH}",
                  CUDA_VISIBLE_DEVICES="all" if gpus else "")  # fmt: skip
    assert done.returncode == 0, done.stderr
    command, *arguments = done.stdout.splitlines()
    assert command == "launch"
    parsed = launch_command_parser().parse_args(arguments)
    assert Path(parsed.config_file) == LAUNCH / "accelerate" / f"{file}.yaml"
    expected = {key: str(hosts) if value == "HOSTS" else value for key, value in expected.items()}
    assert {key: getattr(parsed, key) for key in expected} == expected
    assert (parsed.mpirun_hostfile is None) == (file != "cpu" or parsed.num_processes == 1)
    assert parsed.training_script_args == ["train", "x.yaml", "--optim.lr", "1"]
    config = load_config_from_file(parsed.config_file)  # refuses keys that Accelerate does not know
    assert config.mixed_precision == "no"
    assert config.distributed_type == {"one_gpu": "NO", "cpu": "MULTI_CPU"}.get(file, "MULTI_GPU")
    assert f"--config_file launch/accelerate/{file}.yaml" in Path(parsed.config_file).read_text()


def test_shellcheck(monkeypatch):
    monkeypatch.setenv("PATH", PATH)
    require("shellcheck")
    files = sorted([*LAUNCH.glob("*.sh"), *(ROOT / "slurm").iterdir(), *(ROOT / "tests").glob("*/*.sh")])
    assert len(files) >= 5
    done = subprocess.run(["shellcheck", *map(str, files)], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout
    # And what is written of them; functions that only another launcher needs are in it as well.
    for launcher in ("srun", "torchrun", "elastic"):
        written = batch_script(ROOT / "configs" / "digits.yaml", launcher=launcher, array="0-1").text
        done = subprocess.run(["shellcheck", "--severity=warning", "-"], input=written, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout
