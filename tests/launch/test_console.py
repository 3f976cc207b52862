"""The console on a real terminal, as its screen shows it in the end; and where there is none, plain lines."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pyte
import pytest

from tests.ranks import clean_environment, run_torchrun

NOISY = """
import sys, warnings
from torch import nn

class Net(nn.Sequential):
    calls = 0
    def forward(self, x):
        self.calls += 1
        if self.calls == 40:
            warnings.warn("something to be read")
            print("printed by the user's own code")
            print("and on stderr", file=sys.stderr)
        return super().forward(x)

def net(num_classes):
    return Net(nn.Flatten(), nn.Linear(768, num_classes))
"""


def on_terminal(command, columns, cwd, **environment):
    """(the lines that its terminal showed, scrolled ones too; everything it was sent)"""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = clean_environment() | {"TERM": "xterm-256color"} | environment
    variables.pop("COLUMNS")
    process = subprocess.Popen([*map(str, command)], cwd=cwd, env=variables, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    sent = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        sent += part
    os.close(ours)
    assert process.wait() == 0, sent.decode()
    screen = pyte.HistoryScreen(columns, 24, history=5000, ratio=1)
    pyte.ByteStream(screen).feed(sent)
    scrolled = ["".join(line[i].data for i in range(columns)) for line in screen.history.top]
    return [line.rstrip() for line in [*scrolled, *screen.display]], sent


@pytest.fixture
def noisy(synthetic, tmp_path):
    """A run of a few seconds whose model prints and warns in its midst."""
    (tmp_path / "noisy.py").write_text(NOISY)
    steps = ["--train.duration", "12ep", "--tracking.log_every", "1", "--model.name", "noisy:net"]
    return [
        sys.executable,
        "-m",
        "distcnn",
        "train",
        synthetic,
        *steps,
        "--eval.every",
        "4ep",
        "--checkpoint.every",
        "4ep",
    ]


@pytest.mark.parametrize("columns", [120, 50])
def test_the_display_leaves_whole_lines_behind_and_nothing_else(noisy, tmp_path, columns):
    lines, sent = on_terminal(noisy, columns, tmp_path)
    text = "\n".join(lines)
    joined = re.sub(r"\s+", "", text)  # a narrow one breaks lines anywhere
    for said in ("UserWarning: something to be read", "printed by the user's own code", "and on stderr"):
        assert joined.count(said.replace(" ", "")) == 1, text
    assert len(re.findall(r"epoch\d+/12step\d+loss", joined)) == 12
    assert "accuracy" in joined
    assert "━" not in text  # the bars are gone
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\s", "", sent.decode())
    for shown in ("━", "img/s", "loss", "GB", "savedstep"):
        assert shown in drawn


def test_no_color_is_respected(noisy, tmp_path):
    _, sent = on_terminal(noisy, 100, tmp_path, NO_COLOR="1")
    assert b"\xe2\x94\x81" in sent  # it is drawn
    assert re.findall(rb"\x1b\[[0-9;]*(?:3[0-7]|38;5|9[0-7])[0-9;]*m", sent) == []


def test_quiet_says_nothing(noisy, tmp_path):
    lines, _ = on_terminal([*noisy, "--quiet"], 100, tmp_path)
    said = [line for line in lines if line]
    assert [line for line in said if "img/s" in line or "epoch" in line or "distcnn" in line] == []
    assert "printed by the user's own code" in said


def test_without_a_terminal_lines_are_plain_and_rank_0s_alone(synthetic):
    outcome = run_torchrun(["train", synthetic], 2)
    assert outcome.codes == [0], outcome.err
    assert "\x1b" not in outcome.out
    assert outcome.out.count("accumulated") == 1
    assert len([line for line in outcome.out.splitlines() if re.match(r"epoch \d/2  step", line)]) == 2
