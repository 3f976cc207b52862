"""The engine on Accelerate: what its configuration says, and the native engine's weights to the bit."""

import copy

import pytest
import torch
import torch.nn.functional as F

from distcnn import text
from distcnn.config.settings import Settings
from distcnn.engine.accelerate import AccelerateEngine, compiles, defaults, problems
from distcnn.engine.base import StepOptions
from distcnn.engine.ddp import DDPEngine
from distcnn.models.build import build_model

MIXED, DYNAMO, CPU = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_USE_CPU"


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(text, "find_spec", lambda _: "wherever")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {}),
        ({MIXED: "no", DYNAMO: "NO", CPU: "False"}, {}),
        ({MIXED: "bf16"}, {"train.precision": "bf16"}),
        ({MIXED: "fp16"}, {"train.precision": "fp16"}),
        ({DYNAMO: "INDUCTOR"}, {"model.compile": True}),
        ({CPU: "True"}, {"train.device": "cpu"}),
        ({MIXED: "bf16", DYNAMO: "EAGER", CPU: "true"}, {"train.precision": "bf16", "model.compile": True, "train.device": "cpu"}),
    ],
)  # fmt: skip
def test_what_the_configuration_says_of_the_run(installed, environment, expected):
    """A run that takes it does not contradict it."""
    assert defaults(environment) == expected
    assert compiles(environment) == expected.get("model.compile", False)
    settings = Settings()
    for key, value in expected.items():
        settings.default(key, value)
    assert not [*problems(settings.check(1), environment)]


# environment, arguments → the key and the parts of the message; None where it fits
@pytest.mark.parametrize(
    ("environment", "arguments", "key", "said"),
    [
        ({}, [], None, []),
        ({MIXED: "no"}, ["--train.precision", "bf16"], None, []),  # left to the run
        ({MIXED: "bf16"}, ["--train.precision", "bf16"], None, []),
        ({MIXED: "bf16"}, [], "train.precision", ["mixed_precision: bf16", "set the same in both"]),
        ({MIXED: "fp8"}, [], "train.precision", [f"{MIXED} = fp8", "set mixed_precision to bf16"]),
        ({"ACCELERATE_USE_FSDP": "true"}, [], "engine", ["ACCELERATE_USE_FSDP", "set use_fsdp: false"]),
        ({"ACCELERATE_USE_DEEPSPEED": "True"}, [], "engine", ["ACCELERATE_USE_DEEPSPEED", "set use_deepspeed: false"]),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, [], "engine", ["ACCELERATE_USE_MEGATRON_LM", "use_megatron_lm: false"]),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, [], "engine", ["ACCELERATE_USE_PARALLELISM_CONFIG", "parallelism_config: false"]),
        ({"ACCELERATE_USE_FSDP": "false"}, [], None, []),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}, [], None, []),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, [], "train.micro_batch", ["STEPS = 4", "remove gradient_accumulation_steps"]),
        ({DYNAMO: "INDUCTOR"}, ["--model.compile", "true"], None, []),
        ({DYNAMO: "INDUCTOR"}, [], "model.compile", ["dynamo_backend: inductor", "set model.compile true"]),
        ({CPU: "True"}, ["--train.device", "cuda"], "train.device", ["use_cpu: true", "set train.device cpu"]),
        ({CPU: "True"}, ["--train.device", "cpu"], None, []),
        ({CPU: "True"}, [], None, []),
        ({CPU: "False"}, ["--train.device", "cuda"], None, []),
    ],
)  # fmt: skip
def test_where_the_two_contradict_each_other(installed, environment, arguments, key, said):
    found = [*problems(Settings().read_arguments(arguments).check(1), environment)]
    assert [keys for keys, _ in found] == ([(key,)] if key else [])
    assert all(part in message for _, message in found for part in said)


def test_without_accelerate_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr(text, "find_spec", lambda _: None)
    ((keys, message),) = problems(Settings().check(1), {})
    assert keys == ("engine",)
    assert "pip install 'distcnn[accelerate]', or engine: ddp" in message


@pytest.fixture
def accelerate(monkeypatch):
    """Accelerate as in a new process, with nothing left behind."""
    from accelerate import state

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in (MIXED, DYNAMO, CPU):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    state.AcceleratorState._reset_state(reset_partial_state=True)


def engine_of(kind, **options):
    torch.manual_seed(0)
    model = build_model("resnet9", 10, 16, {"width": 4})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    return kind(model, optimizer, torch.device("cpu"), StepOptions(clip_norm=0.05, micro_batches=3, **options))


def train(engine, steps, first=0):
    """Updates of three micro-batches each, the images of each step its own."""
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for part in range(3):
            images = torch.randn(8, 3, 16, 16, generator=generator)
            labels = torch.randint(10, (8,), generator=generator)
            with engine.accumulate(sync=part == 2):
                with engine.autocast():
                    logits = engine.forward(images)
                engine.backward(F.cross_entropy(logits.float(), labels) / 3, sync=part == 2)
        engine.step()


def tensors(tree, path=""):
    """Every leaf of a nested state, by its path."""
    if not isinstance(tree, dict | list):
        return {path: tree.tolist() if isinstance(tree, torch.Tensor) else tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {name: leaf for key, one in items for name, leaf in tensors(one, f"{path}.{key}").items()}


def state_of(engine):
    return {"model": engine.model.state_dict(), **engine.state_dict()}


@pytest.mark.parametrize("gradient_sum", ["fp64", "fp32"])
@pytest.mark.parametrize("backend", ["NO", "EAGER"])
def test_the_weights_are_the_native_engines_to_the_bit(accelerate, monkeypatch, backend, gradient_sum):
    monkeypatch.setenv(DYNAMO, backend)
    native, other = (engine_of(kind, gradient_sum=gradient_sum) for kind in (DDPEngine, AccelerateEngine))
    assert (type(other.forward) is not type(other.model)) == (backend == "EAGER")  # wrapped by torch.compile
    begun = tensors(state_of(native))
    for engine in (native, other):
        train(engine, 4)
    assert tensors(state_of(other)) == tensors(state_of(native)) != begun
    assert [*other.model.state_dict()] == [*build_model("resnet9", 10, 16, {"width": 4}).state_dict()]


@pytest.mark.parametrize("kind", [DDPEngine, AccelerateEngine])
def test_a_clipped_step_is_the_one_computed_by_hand(accelerate, kind):
    engine = engine_of(kind)
    before = copy.deepcopy(engine.model)
    train(engine, 1)
    generator, loss = torch.Generator().manual_seed(0), 0.0
    for _ in range(3):
        images = torch.randn(8, 3, 16, 16, generator=generator)
        loss = loss + F.cross_entropy(before(images), torch.randint(10, (8,), generator=generator)) / 3
    parameters = [*before.parameters()]
    gradients = torch.autograd.grad(loss, parameters)
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    assert norm > 0.1  # of which 0.05 are left
    for p, g, after in zip(parameters, gradients, engine.model.parameters(), strict=True):
        expected = p - 0.1 * (g * (0.05 / norm) + 1e-3 * p)
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", ["NO", "EAGER"])
@pytest.mark.parametrize("kinds", [(DDPEngine, AccelerateEngine), (AccelerateEngine, DDPEngine)])
def test_either_goes_on_from_the_others_state(accelerate, monkeypatch, kinds, backend):
    monkeypatch.setenv(DYNAMO, backend)
    straight = engine_of(DDPEngine)
    train(straight, 4)
    first, second = map(engine_of, kinds)
    train(first, 2)
    second.load_state_dict(first.state_dict())
    second.model.load_state_dict(first.model.state_dict())
    train(second, 2, first=2)
    assert tensors(state_of(second)) == tensors(state_of(straight))


def test_the_scale_of_fp16_goes_over_too(accelerate):
    native, other = (engine_of(kind) for kind in (DDPEngine, AccelerateEngine))
    native.scaler, other.scaler = (torch.amp.GradScaler("cpu", init_scale=scale) for scale in (8.0, 2.0))
    other.load_state_dict(native.state_dict())
    assert other.scaler.get_scale() == 8.0


def test_bf16_is_close_to_the_native_engines(accelerate):
    native, other = (engine_of(kind, precision="bf16") for kind in (DDPEngine, AccelerateEngine))
    single = engine_of(DDPEngine)
    for engine in (native, other, single):
        train(engine, 2)
    weights = [torch.cat([p.detach().flatten() for p in e.model.parameters()]) for e in (native, other, single)]
    assert weights[1].dtype == torch.float32
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-2, atol=1e-3)
    assert not torch.equal(weights[1], weights[2])  # it was not fp32
