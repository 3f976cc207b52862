"""YAML and command line → Config: every problem at once, each with the key, the value, the place and what is valid."""

import pytest
from pydantic import TypeAdapter

from distcnn.config.schema import Config
from distcnn.config.settings import Settings, saved_settings
from distcnn.config.types import PartList
from distcnn.errors import DeviceError, InputError


def read(tmp_path, text, *arguments):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return Settings().read_yaml(path).read_arguments(arguments)


def problems(settings, world_size=1):
    with pytest.raises(InputError) as caught:
        settings.check(world_size)
    return caught.value.problems


def said(*arguments, world_size=1):
    return problems(Settings().read_arguments(arguments), world_size)


def test_nothing_given_is_the_default_config():
    assert Settings().check(1) == Config()


def test_what_the_device_of_this_rank_cannot_do_stands_beside_the_rest_and_makes_it_a_bad_device():
    def no_gpu(_):
        yield ("train.device",), "rank 1 on b: none is visible"

    settings = Settings().read_arguments(["--optim.lr", "-1", "--train.device", "cuda"])
    with pytest.raises(DeviceError) as caught:
        settings.check(1, device=no_gpu)
    rate, device = caught.value.problems
    assert rate.startswith("optim.lr = -1")
    assert device == "train.device = cuda (command line): rank 1 on b: none is visible"
    with pytest.raises(InputError) as alike:
        settings.check(1, environment=no_gpu)
    assert type(alike.value) is InputError


def test_the_command_line_overrides_the_file_and_the_file_the_default(tmp_path):
    settings = read(tmp_path, "name: file\ntrain: {batch_size: 64, duration: 3ep}\n", "--train.batch_size", "32")
    config = settings.default("name", "stem").default("seed", 7).check(1)
    assert (config.name, config.seed, config.train.batch_size, config.train.duration) == (
        "file",
        7,
        32,
        "3ep",
    )


@pytest.mark.parametrize("arguments", [("--optim.lr", "1e-3"), ("--optim.lr=1e-3",), ("--optim.lr=0.001",)])
def test_both_spellings_of_an_argument_and_exponents(arguments):
    assert Settings().read_arguments(arguments).check(1).optim.lr == 0.001


def test_argument_values_are_yaml():
    arguments = [
        "--data.mean=[0.1, 0.2, 1]",
        "--data.std",
        "[1, 1, 1]",
        "--model.args",
        "{width: 8}",
        "--data.augment=[flip]",
    ]
    config = Settings().read_arguments([*arguments, "--train.clip_norm=1", "--train.clip_norm", "null"]).check(1)
    assert config.data.mean == (0.1, 0.2, 1.0)
    assert (config.model.args, config.data.augment, config.train.clip_norm) == ({"width": 8}, ("flip",), None)


@pytest.mark.parametrize("value", ["010", "12:30", "2024-01-05", "2024-13-45", "0b_", "on", "#1"])
def test_a_text_value_is_taken_as_it_is_typed(value):
    """YAML 1.1 would read an octal, a sexagesimal, a date, a broken date, a broken number, true and a comment."""
    assert Settings().read_arguments(["--name", value]).check(1).name == value


def test_all_problems_at_once_with_their_places(tmp_path):
    text = "seed: true\ntrain:\n  batch_size: 2.5\n  duration: 10\noptim:\n  lr: -1\n  foo: 2\n"
    settings = read(tmp_path, text, "stray", "--engine", "dpp", "--data.mean=[1, 2]", "--eval.every")
    path = tmp_path / "run.yaml"
    expected = {
        "seed = true": f"({path}:1)", "train.batch_size = 2.5": f"({path}:3)", "train.duration = 10": f"({path}:4)",
        "optim.lr = -1": f"({path}:6)", "optim.foo": f"({path}:7)", "stray": "(command line)",
        "engine = dpp": "(command line)", "data.mean = [1, 2]": "(command line)", "eval.every": "(command line)",
    }  # fmt: skip
    found = problems(settings)
    assert len(found) == len(expected)
    for start, place in expected.items():
        assert sum(problem.startswith(f"{start} {place}: ") for problem in found) == 1, (start, found)


@pytest.mark.parametrize(
    ("key", "value", "valid"),
    [
        ("train.batch_size", "0", "greater than or equal to 1"),
        ("train.batch_size", "true", "number"),
        ("optim.lr", "false", "number"),
        ("optim.lr", ".nan", "finite"),
        ("optim.lr", "fast", "number"),
        ("optim.weight_decay", "-1", "greater than or equal to 0"),
        ("data.augment", "[{flip: 1}]", "one name with its arguments"),
        ("checkpoint.minutes", "0", "greater than 0"),
        ("data.mean", "[0.5, 0.5, x]", "number"),
        ("seed", "4294967296", "less than 4294967296"),
        ("train.precision", "bf61", "'bf16', 'bf16-master' or 'fp16'"),
        ("train.duration", "10", "10ep"),
        ("train.duration", "1.5step", "500step"),
        ("train.duration", "0ep", "longer than zero"),
        ("schedule.warmup", "5", "10ep"),
        ("model.args", "5", "dictionary"),
    ],
)
def test_wrong_type_or_range_says_what_is_valid(key, value, valid):
    (problem,) = said(f"--{key}", value)
    assert problem.startswith(f"{key} = ")
    assert "(command line)" in problem
    assert valid in problem


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.batchsize", "train.batch_size"),
        ("optim.weight_deacy", "optim.weight_decay"),
        ("trian.batch_size", "train.batch_size"),
        ("chekpoint.every", "checkpoint.every"),
        ("model.nmae", "model.name"),
        ("epochs", "train.duration"),
        ("train.epochs", "train.duration"),
        ("lr", "optim.lr"),
        ("train.lr", "optim.lr"),
        ("batch_size", "train.batch_size"),
        ("data.batch_size", "train.batch_size"),
        ("trian", "train"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, meant):
    (problem,) = said(f"--{key}", "1")
    assert problem == f"{key} (command line): unknown key; did you mean {meant}?"


def test_an_unknown_key_like_no_other_points_to_the_list():
    (problem,) = said("--zzzzz", "1")
    assert problem.startswith("zzzzz (command line): unknown key; ")
    assert "--help" in problem


def test_a_hint_is_a_key_and_not_the_section_one_is_in():
    (problem,) = said("--optim.zz", "1")
    assert "did you mean optim?" not in problem


@pytest.mark.parametrize(
    "text",
    ["train: {batchsize: 96}", "train: {batch_size: ten}", "trian: {batch_size: 96}"],
    ids=["key", "value", "section"],
)
def test_a_mistake_gives_no_second_message_about_the_default(tmp_path, text):
    """The default batch of 128 does not divide over 3 ranks, but the user asked for another one."""
    assert len(problems(read(tmp_path, text), world_size=3)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "train:\n  batch_size: 8\n  batch_size: 4\n",
        "train: {}\nseed: 1\ntrain: {}\n",
        "model:\n  args:\n    w: 8\n    w: 9\n",
    ],
    ids=["key", "section", "inside a value"],
)
def test_a_key_given_twice(tmp_path, text):
    (problem,) = problems(read(tmp_path, text))
    assert "given twice" in problem


@pytest.mark.parametrize("arguments", [("--optim.lr",), ("--train.duration", "--optim.lr", "0.1"), ("--seed", "")])
def test_a_missing_value(arguments):
    (problem,) = said(*arguments)
    assert problem.startswith(f"{arguments[0][2:]} (command line): needs a value")


@pytest.mark.parametrize("text", ["train: 5\n", "train:\n"])
def test_a_section_without_keys(tmp_path, text):
    (problem,) = problems(read(tmp_path, text))
    assert problem.startswith(f"train ({tmp_path / 'run.yaml'}:1): is a section")


@pytest.mark.parametrize("text", ["- a\n", "just text\n", "a: [\n", "a: b: c\n", "\x07\n"])
def test_a_file_that_is_not_a_config(tmp_path, text):
    with pytest.raises(InputError, match=r"run\.yaml"):
        read(tmp_path, text)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml"):
        Settings().read_yaml(tmp_path / "none.yaml")
    with pytest.raises(InputError, match=str(tmp_path)):
        Settings().read_yaml(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match=r"bytes\.yaml"):
        Settings().read_yaml(tmp_path / "bytes.yaml")


@pytest.mark.parametrize("text", ["name: !!python/object/apply:os.getcwd []\n", "name: 2024-13-45\n"])
def test_a_value_that_yaml_cannot_make_is_one_problem(tmp_path, text):
    (problem,) = problems(read(tmp_path, text))
    assert problem.startswith(f"name ({tmp_path / 'run.yaml'}:1): ")


# Arguments of parts: mappings such as model.args, of which each argument is a key


def args_of(settings):
    return settings.check(1).model.args


def test_each_argument_has_its_own_line_and_the_command_line_changes_one_of_them(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("model:\n  name: resnet9\n  args:\n    width: 4\n    scale: 0.5\n")
    settings = Settings().read_yaml(path).read_arguments(["--model.args.width", "8"])
    assert args_of(settings) == {"width": 8, "scale": 0.5}
    assert settings.values["model.args.scale"] == (0.5, f"{path}:5")
    assert settings.values["model.args.width"] == (8, "command line")


def test_a_whole_mapping_takes_the_place_of_all_before_it():
    settings = Settings().update({"model.args": {"width": 4, "scale": 0.5}})
    assert args_of(settings.update({"model.args": {"width": 8}})) == {"width": 8}
    assert args_of(settings.update({"model.args": {}})) == {}
    assert args_of(settings.update({"model.args": 5}).update({"model.args.width": 2})) == {"width": 2}
    tree = {"model.args.width": 4, "model.args": {}, "model": {"name": "resnet9"}}
    assert args_of(saved_settings(tree, "here")) == {}
    with pytest.raises(InputError, match=r"model\.args = 5 "):
        settings.update({"model.args": 5}).check(1)


def test_another_part_does_not_get_the_arguments_of_the_one_before(tmp_path):
    path = tmp_path / "x.yaml"
    for head in ("  name: resnet9\n", "  args: {}\n"):  # by name, and by default
        path.write_text(f"model:\n{head}  channels_last: true\n")
        for order in (
            ["--model.name", "resnet18", "--model.args.w", "8"],
            ["--model.args.w", "8", "--model.name", "resnet18"],
        ):
            settings = Settings().read_yaml(path).update({"model.args.width": 4, "model.args.scale": 0.5})
            assert args_of(settings.read_arguments(order)) == {"w": 8}
    path.write_text("model:\n  args: {width: 4}\n  name: resnet9\n")
    settings = Settings().read_yaml(path)
    assert args_of(settings) == {"width": 4}
    assert args_of(settings.read_arguments(["--model.name", "resnet9"])) == {"width": 4}
    default = Settings().update({"data.args.md5": "x"}).read_arguments(["--data.source", "cifar10"]).check(1)
    assert default.data.args == {"md5": "x"}


def test_an_unknown_key_of_a_section_with_arguments_may_be_one():
    with pytest.raises(
        InputError, match=r"model\.width \(command line\): unknown key; did you mean model\.args\.width\?"
    ):
        Settings().read_arguments(["--model.width", "8"]).check(1)


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("flip", ("flip",)),
        (["flip", {"crop": {"padding": 4}}], ("flip", {"crop": {"padding": 4}})),
        ([{"flip": None}, {"cutout": {}}], ("flip", "cutout")),
        ([], ()),
    ],
)
def test_a_list_of_parts_is_names_with_their_arguments(value, parts):
    assert TypeAdapter(PartList).validate_python(value) == parts


@pytest.mark.parametrize("value", [5, [["flip"]], [{"a": {}, "b": {}}], [{"crop": 4}], [{1: {}}], None])
def test_what_is_no_list_of_parts_is_told_what_one_is(value):
    with pytest.raises(ValueError, match="an item is a name, or one name with its arguments"):
        TypeAdapter(PartList).validate_python(value)
