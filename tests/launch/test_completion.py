"""Completion in a real bash."""

import os
import subprocess
import sys

import pytest

from tests.ranks import clean_environment

SCRIPT = """
source <({python} -m distcnn complete bash)
COMP_WORDS=({words}) COMP_CWORD=$(({count} - 1))
_distcnn
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["distcnn", "tr"], {"train", "trials"}),
        (["distcnn", "train", "x.yaml", "--optim.l"], {"--optim.lr", "--optim.lr_scaling"}),
        (["distcnn", "train", "x.yaml", "--train.precision", "bf"], {"bf16", "bf16-master"}),
        (["distcnn", "predict", "runs/x", "--to"], {"--top"}),
        (["distcnn", "doctor", "--backend", ""], {"auto", "gloo"}),
        (["distcnn", "runs", "--optim"], set()),
    ],
)
def test_bash_completes(words, wanted):
    quoted = " ".join(f"'{word}'" for word in words)
    script = SCRIPT.format(python=sys.executable, words=quoted, count=len(words))
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | clean_environment(), capture_output=True, text=True, check=True
    )
    assert {*done.stdout.split()} == wanted, done.stderr
