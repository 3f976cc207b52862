"""The text of the batch scripts: golden heads, and what is refused before anything is written."""

import subprocess
import sys
from pathlib import Path

import pytest

from distcnn.cli import main
from distcnn.errors import InputError
from distcnn.slurm import batch_script
from distcnn.slurm.script import folder

ROOT = Path(__file__).parents[2]


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


def head(text):
    """What is of this job; the rest is the same in all."""
    shell = "\n".join((ROOT / "slurm" / file).read_text().split("\n", 1)[1] for file in ("rules.sh", "job.sh"))
    assert text.endswith(f"\n\n{shell}")
    return text.removesuffix(f"\n{shell}")


@pytest.mark.parametrize("name", GOLDEN)
def test_printed_scripts(name, capsys, monkeypatch):
    """After a change: python tests/unit/test_sbatch.py writes them anew; read the difference."""
    monkeypatch.chdir(ROOT)
    assert head(printed(capsys, *GOLDEN[name])) == (ROOT / "tests" / "golden" / f"{name}.sbatch").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([CONFIG, "--nodes", "0"], "--nodes 0: should be 1 or more"),
        ([CONFIG, "--gpus-per-node", "2", "--ranks-per-node", "4"], "each rank needs a GPU"),
        ([CONFIG, "configs/simple_cnn.yaml"], "several need an array, 0-1"),
        ([CONFIG, "--nodes", "3"], "the global batch 64 does not divide"),
        ([CONFIG, "--nodes", "4", "--launcher", "elastic", "--train.micro_batch", "8"], "on 3 ranks"),
        ([CONFIG, "--optim.lrr", "1"], "did you mean optim.lr"),
        ([CONFIG, "--optim.args.betaz", "1"], "optim.args.betaz = 1 (command line): unknown argument; did you mean"),
        (["none.yaml"], "none.yaml: No such file"),
    ],
)
def test_refused_before_anything_is_written(arguments, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert main(["slurm", *arguments, "--output_dir", str(tmp_path / "runs")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"nodes": 0, "grace": "soon"}, ["nodes = 0: should be", "grace = 'soon': should be"]),
        ({"gpu_per_node": 4}, ["gpu_per_node = 4: unknown argument; did you mean gpus_per_node?"]),
        ({"launcher": "mpi"}, ["launcher = 'mpi': should be 'srun', 'torchrun' or 'elastic'"]),
        ({"time": "1h"}, ["time = '1h': should be a time as sbatch takes it"]),
        ({"time": "10\nrm -r x"}, ["time = '10\\nrm -r x': should be a time"]),
        ({"array": "0-"}, ["array = '0-': should be elements as sbatch takes them"]),
        ({"array": "4-2"}, ["array = '4-2': 4-2 names no element"]),
        ({"options": {"--partition": "long"}}, ["'--partition' is not the name of an sbatch option"]),
        ({"options": {"comment": "a\nrm -r x"}}, ["comment: 'a\\nrm -r x' contains unprintable characters"]),
        ({"gpus_per_node": 2, "ranks_per_node": 4}, ["each rank needs a GPU"]),
    ],
)
def test_wrong_parameters_are_named(resources, words):
    with pytest.raises(InputError) as error:
        batch_script(ROOT / CONFIG, **resources)
    assert len(error.value.problems) == len(words)
    assert all(word in problem for word, problem in zip(words, error.value.problems, strict=True))


def test_configs_that_are_no_files_are_written_beside_the_script():
    tree = {"name": "mine", "output_dir": "out", "data": {"source": "synthetic"}, "train.batch_size": 64}
    found = batch_script(tree, nodes=2)
    (path, text), *rest = found.files.items()
    assert (path, rest) == (Path("out/mine.yaml"), [])
    assert "batch_size: 64" in text
    assert "set -- out/mine.yaml\n" in found.text
    assert (found.path, found.output) == (Path("out/mine.sbatch"), "out/%x-%j.out")
    assert batch_script(found.configs[0], nodes=2) == found
    changed = batch_script(ROOT / CONFIG, {"optim.lr": 0.125})
    assert "lr: 0.125" in changed.files[Path("runs/digits.yaml")]
    with pytest.raises(InputError, match="name = none: give the run a name"):
        batch_script({"data.source": "synthetic"})


def test_an_array_takes_a_config_for_each_element():
    trees = [{"name": name, "data.source": "synthetic"} for name in ("a", "b", "c")]
    assert "set -- runs/a.yaml runs/b.yaml runs/c.yaml\n" in batch_script(trees, array="0,2%1").text
    with pytest.raises(InputError, match="no config for element 4"):
        batch_script(trees, array="0-4:2")
    with pytest.raises(InputError, match="3 configs: several need an array, 0-2"):
        batch_script(trees)
    with pytest.raises(InputError, match="needs a config"):
        batch_script([])


def test_a_path_that_would_break_the_line_of_the_log_is_refused():
    with pytest.raises(InputError, match=r"output = 'a.nb/%x-%j.out'"):
        batch_script(ROOT / CONFIG, {"output_dir": "a\nb"})


def test_the_shell_files_are_where_the_scripts_look_for_them():
    assert folder() == ROOT / "slurm"
    for name in ("srun", "torchrun", "elastic", "array"):
        text = (folder() / f"{name}.sbatch").read_text()
        assert '. "$scripts/rules.sh"' in text
        assert text.endswith('. "$scripts/job.sh"\n')
        signal = next(line for line in text.splitlines() if line.startswith("#SBATCH --signal"))
        assert f"DISTCNN_GRACE={signal.rpartition('@')[2]} " in text


if __name__ == "__main__":
    for name, arguments in GOLDEN.items():
        command = [sys.executable, "-m", "distcnn", "slurm", *map(str, arguments), "--print"]
        text = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True).stdout
        (ROOT / "tests" / "golden" / f"{name}.sbatch").write_text(head(text.replace(sys.executable, "PYTHON")))
