"""`distcnn slurm` where there is no Slurm."""

from pathlib import Path

from distcnn.cli import main

ROOT = Path(__file__).parents[2]


def test_without_slurm_the_script_is_kept(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["slurm", "configs/digits.yaml", "--output_dir", str(tmp_path / "runs")]) == 2
    assert "sbatch: not found" in capsys.readouterr().err
    assert (tmp_path / "runs" / "digits.sbatch").read_text().startswith("#!/bin/bash\n")
