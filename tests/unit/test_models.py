"""Networks by name: the ones promised, a user's own, and one clear message for what cannot work."""

import sys

import pytest
import torch
from torch import nn

from distcnn.errors import InputError
from distcnn.models import MODELS
from distcnn.models.build import build_model, check_sizes, forward_flops


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def refused(*arguments):
    with pytest.raises(InputError) as caught:
        build_model(*arguments)
    (problem,) = caught.value.problems
    return problem


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A package of the user's, importable by name for one test."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "ours_for_test").mkdir()
    (tmp_path / "ours_for_test" / "__init__.py").touch()
    (tmp_path / "ours_for_test" / "nets.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "number = 3\n"
        "class Linear(nn.Sequential):\n"
        "    def __init__(self, num_classes, image_size, bias=True):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(3 * image_size**2, num_classes, bias))\n"
        "class Pooled(nn.Module):\n"
        "    def __init__(self, num_classes, extra=0):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(3, num_classes + extra)\n"
        "    def forward(self, x):\n"
        "        return self.head(x.mean(dim=(2, 3)))\n"
        "class Looking(Pooled):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x) * (2.0 if x.sum().item() > 0 else 1.0)\n"
        "class Auxiliary(Pooled):\n"
        "    aux_logits = True\n"
        "    def forward(self, x):\n"
        "        return (super().forward(x), 0) if self.training else super().forward(x)\n"
        "def not_a_module(num_classes):\n"
        "    return num_classes\n"
    )
    yield "ours_for_test.nets"
    for name in [name for name in sys.modules if name.startswith("ours_for_test")]:
        del sys.modules[name]


def test_simple_cnn_is_the_tutorials_network():
    reference = nn.Sequential(
        nn.Conv2d(3, 32, kernel_size=3, stride=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, kernel_size=3, stride=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(6 * 6 * 64, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    model = build_model("simple_cnn", 10, 32)
    state = model.state_dict()
    layers = ("conv1", "conv2", "fc1", "fc2")
    assert list(state) == [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    assert [tuple(t.shape) for t in state.values()] == [tuple(t.shape) for t in reference.state_dict().values()]
    reference.load_state_dict(dict(zip(reference.state_dict(), state.values(), strict=True)))
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(images), reference(images), rtol=0, atol=1e-6)
    for one in (model, reference):
        one(images).square().sum().backward()
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "count"), [("simple_cnn", 315_722), ("resnet9", 6_573_120), ("resnet18", 11_173_962)])
def test_parameter_counts(name, count):
    assert parameters(build_model(name, 10, 32)) == count


@pytest.mark.parametrize("name", [*MODELS.builtin])
@pytest.mark.parametrize(("classes", "size"), [(3, 16), (100, 33)])
def test_other_sizes_and_numbers_of_classes(name, classes, size):
    args = {"resnet9": {"width": 4}}.get(name, {})
    model = build_model(name, classes, size, args).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, size, size)).shape == (1, classes)
    assert model.training is False
    assert all(p.device.type == "cpu" for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet9", "compact_cnn"])
def test_a_second_smaller_size(name):
    model = build_model(name, 10, 32)
    check_sizes(model, name, 10, [24])
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 24, 24)).shape == (2, 10)


def test_a_network_of_one_size_refuses_the_smaller_one():
    with pytest.raises(
        InputError, match=r"data\.augment, images of 24 pixels: model\.name = simple_cnn: cannot .*24×24.*resnet9$"
    ):
        check_sizes(build_model("simple_cnn", 10, 32), "simple_cnn", 10, [24])


def test_resnet18_keeps_the_resolution_of_small_images():
    model = build_model("resnet18", 10, 32)
    shapes = []
    for stage in (model.layer1, model.layer4):
        stage.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[2:])))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    assert shapes == [(32, 32), (4, 4)]


def test_building_looks_at_a_copy():
    torch.manual_seed(0)
    model = build_model("resnet9", 10, 8, {"width": 4})
    assert model.training
    batchnorm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert batchnorm.num_batches_tracked == 0
    assert not batchnorm.running_mean.any()
    assert forward_flops(model, 8) > 0
    assert model.training
    torch.manual_seed(0)
    again = build_model("resnet9", 10, 8, {"width": 4})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_torchvision_classifier_by_name():
    model = build_model("squeezenet1_1", 7, 32, {"dropout": 0.25})
    assert type(model).__module__.startswith("torchvision.models")
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.25]


def test_a_users_own_model(user_module):
    model = build_model(f"{user_module}:Linear", 4, 6, {"bias": False})
    assert parameters(model) == 3 * 36 * 4
    assert build_model(f"{user_module}:Pooled", 4, 6).head.out_features == 4
    assert build_model(f"{user_module}:Looking", 4, 6).head.out_features == 4  # cannot run on the meta device


def test_flops_are_those_of_a_hand_calculation():
    two, kernel = 2, 3 * 3  # a multiply and an add; a filter's pixels
    conv1 = two * 30 * 30 * 32 * 3 * kernel
    conv2 = two * 13 * 13 * 64 * 32 * kernel
    assert forward_flops(build_model("simple_cnn", 10, 32), 32) == conv1 + conv2 + two * (64 * 6 * 6 * 128 + 128 * 10)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("simplecnn", "simple_cnn"), ("resnet81", "resnet18"), ("mobilenet_v3_smal", "mobilenet_v3_small")],
)
def test_an_unknown_name_gives_the_nearest(name, meant):
    ((keys, message),) = MODELS.problems(name, {}, None, "model.name", "model.args")
    assert keys == ("model.name",)
    assert meant in message.split(";")[1]
    assert all(known in message for known in MODELS.builtin)
    assert refused(name, 10, 32) == f"model.name = {name}: {message}"
    assert list(MODELS.problems(meant, {}, None, "model.name", "model.args")) == []


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("no_such_module_here:Net", "no_such_module_here"),
        ("{ours}:Missing", "Missing"),
        ("{ours}:number", "number"),
        ("{ours}:", "{ours}"),
        (":Net", "module name"),
        (".nets:Net", "relative"),
    ],
)
def test_a_callable_that_is_not_there(user_module, name, named):
    ((keys, message),) = MODELS.problems(name.replace("{ours}", user_module), {}, None, "model.name")
    assert keys == ("model.name",)
    assert named.replace("{ours}", user_module) in message


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("resnet9", {"widht": 8}, "widht"),
        ("resnet9", {"width": "eight"}, "model.args = {'width': 'eight'}"),
        ("resnet9", {"width": -1}, "model.args = {'width': -1}"),
        ("resnet9", {"num_classes": 5}, "num_classes"),
        ("compact_cnn", {"widths": 5}, "model.args = {'widths': 5}"),
        ("squeezenet1_1", {"weights": "NONE_SUCH"}, "NONE_SUCH"),
        ("{ours}:Pooled", {"extra": 1}, "[2, 10], not [2, 11]"),
        ("{ours}:Auxiliary", {}, "not tuple; try model.args = {aux_logits: false}"),
        ("{ours}:not_a_module", {}, "torch.nn.Module, not int"),
    ],
)
def test_arguments_and_outputs_that_cannot_work(user_module, name, args, said):
    problem = refused(name.replace("{ours}", user_module), 10, 32, args)
    assert problem.startswith("model.name = ")
    assert said in problem


@pytest.mark.parametrize(
    ("name", "size"), [("simple_cnn", 9), ("resnet9", 7), ("compact_cnn", 7), ("squeezenet1_1", 8)]
)
def test_images_that_are_too_small(name, size):
    problem = refused(name, 10, size)
    assert problem.startswith(f"model.name = {name}")
    assert f"{size}×{size}" in problem
    assert "\n" not in problem


def test_whitening_filters_make_patches_of_unit_covariance():
    model = build_model("whitened_cnn", 10, 32)
    noise = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images = noise + noise.mean(dim=1, keepdim=True) * 3 + noise.roll(1, dims=3)  # channels and neighbours agree
    model.init_from_images(images)
    out = model.whiten(images).detach().permute(1, 0, 2, 3).flatten(1)  # [24, patches]
    assert torch.equal(out[:12], -out[12:])
    torch.testing.assert_close(out[:12] @ out[:12].T / out.shape[1], torch.eye(12), atol=0.02, rtol=0)
    assert not model.whiten.weight.requires_grad


def test_stochastic_depth_leaves_out_branches_of_images_and_keeps_the_mean():
    model = build_model("resnet18", 10, 16, {"stochastic_depth": 0.8})
    assert model.state_dict().keys() == build_model("resnet18", 10, 16).state_dict().keys()
    ends = [m.bn2 for m in model.modules() if hasattr(m, "bn2")]
    branch = torch.ones(20_000, ends[0].num_features, 1, 1)
    for number, end in enumerate(ends, 1):
        torch.manual_seed(number)
        shape = (len(branch), end.num_features, 1, 1)
        with torch.no_grad():
            end.weight.zero_()
            end.bias.fill_(1.0)  # the branch is 1 for every image
            out = end.train()(torch.zeros(shape))
        kept = 1 - 0.8 * number / 8
        assert out[:, 0].unique().tolist() == pytest.approx([0.0, 1 / kept])
        assert (out == out[:, :1]).all()  # whole images
        assert out[:, 0].bool().float().mean().item() == pytest.approx(kept, abs=0.02)
        with torch.no_grad():
            assert (end.eval()(torch.zeros(4, *shape[1:])) == 1).all()
