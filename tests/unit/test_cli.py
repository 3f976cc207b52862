"""The command line: help alike everywhere, bad usage as all bad input, torch only where a command needs it."""

import pytest

from distcnn.cli import main
from distcnn.commands import COMMANDS
from distcnn.commands.parser import Parser, command_parser, natural_int, positive_float, positive_int
from distcnn.commands.parts import KINDS
from distcnn.errors import EXIT_BAD_INPUT, EXIT_OK, InputError

SETTINGS = ("train", "evaluate", "trials", "bench", "slurm")  # commands that take --section.key


def told(capsys, *words):
    """The problems that a command line has."""
    assert main(words) == EXIT_BAD_INPUT
    out, err = capsys.readouterr()
    title, *problems = err.splitlines()
    assert (title, out) == ("distcnn: bad input", "")
    assert all(problem.startswith("  ") for problem in problems)
    return [problem[2:] for problem in problems]


def helped(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main(words)
    out, err = capsys.readouterr()
    assert (end.value.code, err) == (EXIT_OK, "")
    return out


def test_alone_and_with_help_it_lists_the_commands_with_a_line_each(capsys):
    text = helped(capsys, "--help")
    for name in COMMANDS.names():
        (line,) = [line for line in text.splitlines() if line.startswith(f"    {name} ")]
        assert len(line.split()) > 3
        assert len(line) <= 80
    assert main([]) == EXIT_OK
    assert capsys.readouterr().out == text
    assert helped(capsys, "-h") == text
    assert helped(capsys, "--version").startswith("distcnn ")


@pytest.mark.parametrize("name", COMMANDS.builtin)
def test_the_help_of_every_command_is_alike(capsys, name):
    text = helped(capsys, name, "--help")
    assert helped(capsys, name, "-h") == text
    usage, description, *_ = text.split("\n\n")
    assert usage.startswith(f"usage: distcnn {name} [-h]")
    assert description == command_parser(name).description
    assert ("[--section.key value ...]" in usage) is (name in SETTINGS)
    assert "-h, --help" in text


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_the_help_lists_the_keys(capsys, name):
    assert "  optim.lr <float> = " in helped(capsys, name, "--help")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["trian"], "distcnn trian: no such command; did you mean train?"),
        (["zzz"], "distcnn zzz: no such command; valid: train, evaluate"),
        (["--foo"], "--foo: unknown option; `distcnn --help` lists all"),
        (["--verison"], "--verison: unknown option; did you mean --version?"),
        (["train"], "distcnn train: the following arguments are required: CONFIG.yaml; see distcnn train --help"),
        (["train", "x.yaml", "--quite"], "--quite: unknown option; did you mean --quiet?"),
        (["train", "x.yaml", "-x"], "-x: unknown option; `distcnn train --help` lists all"),
        (["train", "configs/digits.yaml", "--optim.lrr", "1"], "optim.lrr (command line): unknown key; did you mean optim.lr?"),
        (["train", "configs/digits.yaml", "--lr", "1"], "lr (command line): unknown key; did you mean optim.lr?"),
        (["train", "configs/digits.yaml", "stray"], "stray (command line): not expected here; settings are --section.key value"),
        (["slurm", "configs/digits.yaml", "--node", "2"], "--node: unknown option; did you mean --nodes?"),
        (["bench", "step", "configs/digits.yaml", "--step=5"], "--step: unknown option; did you mean --steps?"),
        (["trials", "configs/digits.yaml", "-n", "1", "--nodes", "2"], "--nodes: takes effect with --slurm only"),
        (["report", "x", "--outptu", "y"], "--outptu: unknown option; did you mean --output?"),
        (["doctor", "x"], "x: not expected here"),
        (["doctor", "--timeout", "-1"], "--timeout -1: should be a number above 0"),
        (["doctor", "--backend", "glo"], "--backend glo: unknown; did you mean gloo? valid: auto, gloo"),
        (["predict", "m", "p.png", "--top"], "distcnn predict: argument --top: expected one argument; see distcnn predict --help"),
        (["evaluate", "no/such"], "no/such: no such run folder or checkpoint"),
    ],
)  # fmt: skip
def test_bad_usage_is_one_message_with_the_fix(capsys, words, problem):
    assert any(found.startswith(problem) for found in told(capsys, *words))


def test_all_problems_are_told_at_once(capsys):
    words = ["--steps", "no", "--warmup", "-1", "--micro-batch", "--optim.lrr", "1", "--train.batch_size", "x"]
    problems = told(capsys, "bench", "step", "configs/digits.yaml", *words)
    starts = ("--micro-batch:", "--steps no:", "--warmup -1:", "optim.lrr", "train.batch_size")
    assert [problem.startswith(start) for problem, start in zip(problems, starts, strict=True)] == [True] * 5


def parsed(parser, *words):
    return vars(parser.parse(words))


@pytest.fixture
def parser():
    parser = Parser("distcnn some")
    parser.add_argument("config")
    parser.add_argument("--size", type=positive_int)
    parser.add_argument("--tags", nargs="+")
    parser.add_argument("--loud", action="store_true")
    parser.add_settings()
    return parser


@pytest.mark.parametrize(
    "words",
    [
        ["x.yaml", "--optim.lr", "-0.1", "--size", "3", "--name=a", "--seed", "1"],
        ["--optim.lr", "-0.1", "x.yaml", "--name=a", "--size=3", "--seed", "1"],
        ["--size", "3", "--optim.lr", "-0.1", "--name=a", "--seed", "1", "x.yaml"],
    ],
)
def test_own_options_and_settings_may_come_in_any_order(parser, words):
    found = parsed(parser, *words)
    assert (found["config"], found["size"]) == ("x.yaml", 3)
    assert found["settings"] == ["--optim.lr", "-0.1", "--name=a", "--seed", "1"]


def test_a_misspelt_option_takes_its_value_with_it(parser):
    for words in (["--sise", "3", "x.yaml"], ["--lowd", "x.yaml"], ["--sise=3", "x.yaml"]):
        parser.problems.clear()
        with pytest.raises(InputError, match=r"did you mean --(size|loud)") as raised:
            parser.parse(words)
        assert len(raised.value.problems) == 1


def test_an_abbreviation_is_not_taken(parser):
    with pytest.raises(InputError, match="--siz: unknown option; did you mean --size"):
        parser.parse(["x.yaml", "--siz", "3"])


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (positive_int, {"1": 1, "20": 20}, {"0": "1 or more", "-1": "1 or more", "x": "whole number", "1.5": "whole number"}),
        (natural_int, {"0": 0}, {"-1": "0 or more"}),
        (positive_float, {"0.5": 0.5, "60": 60.0}, {"0": "above 0", "nan": "above 0", "inf": "above 0", "x": "above 0"}),
    ],
)  # fmt: skip
def test_types(kind, good, bad):
    parser = Parser("distcnn some")
    parser.add_argument("--size", type=kind)
    for text, value in good.items():
        assert parser.parse(["--size", text]).size == value
    for text, said in bad.items():
        parser.problems.clear()
        with pytest.raises(InputError, match=said):
            parser.parse(["--size", text])


# distcnn parts


def test_parts_lists_every_kind_with_its_names(capsys):
    assert main(["parts"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(KINDS)
    for line, (kind, (known, where)) in zip(lines, KINDS.items(), strict=True):
        assert line == f"{kind} ({where}): {', '.join(known.targets)}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_says_what_it_does_and_takes(capsys, kind):
    assert main(["parts", kind]) == 0
    shown = capsys.readouterr().out
    known = KINDS[kind][0]
    for name, target in known.targets.items():
        block = next(block for block in shown.split("\n\n")[1:] if block.startswith(f"{name} = {target}\n"))
        assert block.splitlines()[1].strip(), name  # the first line of its docstring
        assert [line.split()[0] for line in block.splitlines()[2:]] == [one.name for one in known.arguments(name)]


def test_a_part_by_its_place_and_one_that_is_none(capsys):
    assert main(["parts", "optimizers", "torch.optim:RMSprop"]) == 0
    assert "    alpha <float> = 0.99" in capsys.readouterr().out
    assert main(["parts", "optimizers", "sdg"]) == 2
    assert "sdg: unknown; did you mean sgd?" in capsys.readouterr().err
    assert main(["parts", "optimisers"]) == 2
    assert "did you mean optimizers?" in capsys.readouterr().err
