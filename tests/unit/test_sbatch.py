"""The text of the batch scripts: golden files, and what `distcnn slurm` refuses before anything is written."""

import subprocess
import sys
from pathlib import Path

import pytest

from distcnn.__main__ import main
from distcnn.slurm.sbatch import Job, script

ROOT = Path(__file__).parents[2]
SHIPPED = {
    "srun": Job(),
    "torchrun": Job("torchrun"),
    "elastic": Job("elastic"),
    "array": Job(nodes=1, ranks_per_node=1, gpus_per_node=1, array="0-3", output="%x-%A_%a.out"),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_scripts_are_those_of_the_template(name):
    """After a change: python tests/unit/test_sbatch.py writes them anew; read the difference."""
    assert (ROOT / "slurm" / f"{name}.sbatch").read_text() == script(SHIPPED[name])


def printed(capsys, *arguments):
    assert main(["slurm", *map(str, arguments), "--print"]) == 0
    return capsys.readouterr().out.replace(sys.executable, "PYTHON")


CONFIG = "configs/digits.yaml"
GOLDEN = {
    "gpus": [CONFIG, "--nodes", 2, "--gpus-per-node", 4, "--time", "02:00:00", "--train.micro_batch", 8],
    "cpu-seeds": [CONFIG, "--ranks-per-node", 2, "--cpus-per-rank", 4, "--array", "0-9", "--option", "partition=long"],
    "configs": [CONFIG, "configs/simple_cnn.yaml", "--gpus-per-node", 1, "--array", "0-1", "--signal", "USR2"],
    "elastic": [
        CONFIG,
        "--launcher",
        "elastic",
        "--nodes",
        2,
        "--gpus-per-node",
        2,
        "--name",
        "it's",
        "--train.micro_batch",
        8,
    ],
}


@pytest.mark.parametrize("name", GOLDEN)
def test_printed_scripts(name, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert printed(capsys, *GOLDEN[name]) == (ROOT / "tests" / "golden" / f"{name}.sbatch").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([CONFIG, "--nodes", "0"], "--nodes 0: should be 1 or more"),
        ([CONFIG, "--gpus-per-node", "2", "--ranks-per-node", "4"], "one GPU for each rank"),
        ([CONFIG, "configs/simple_cnn.yaml"], "need --array 0-1"),
        ([CONFIG, "--nodes", "3"], "the global batch 64 does not divide"),
        ([CONFIG, "--nodes", "4", "--launcher", "elastic", "--train.micro_batch", "8"], "on 3 ranks"),
        ([CONFIG, "--optim.lrr", "1"], "did you mean optim.lr"),
        (["none.yaml"], "none.yaml: No such file"),
    ],
)
def test_refused_before_anything_is_written(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert main(["slurm", *arguments, "--output_dir", str(tmp_path / "runs")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


if __name__ == "__main__":
    for name, job in SHIPPED.items():
        (ROOT / "slurm" / f"{name}.sbatch").write_text(script(job))
    for name, arguments in GOLDEN.items():
        command = [sys.executable, "-m", "distcnn", "slurm", *map(str, arguments), "--print"]
        text = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True).stdout
        (ROOT / "tests" / "golden" / f"{name}.sbatch").write_text(text.replace(sys.executable, "PYTHON"))
