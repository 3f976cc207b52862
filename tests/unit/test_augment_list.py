"""`data.augment`: what is wrong with a list, an operation of one's own, and one of an installed package."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distcnn.config.schema import Config, DataConfig
from distcnn.data import augment
from distcnn.data.augment.flip import Flip
from distcnn.data.augment.operation import BatchOperation, ImageOperation
from distcnn.data.augment.pipeline import Pipeline, build_pipeline
from distcnn.errors import InputError
from distcnn.registry import Registry
from tests import by_hand
from tests.loaders import places
from tests.packages import install

HERE = "tests.unit.test_augment_list"
PLAN = SimpleNamespace(batch_size=10, steps_per_epoch=5, steps=20)


def found(*items, **options):
    """(keys, text) of each problem."""
    return [*augment.problems(Config(data=DataConfig(augment=items, **options)))]


def build(*items):
    return build_pipeline(DataConfig(augment=items), classes=3, image_size=32, plan=PLAN)


class Darker(ImageOperation):
    """Some images, by as much as is drawn for each."""

    stage = "float"

    def __init__(self, most: float = 1.0):
        self.most = most

    def draw(self, places):
        return {"chosen": places.uniform(0) < 0.5, "by": self.most * places.uniform(1)}

    def __call__(self, images, draws):
        return images - (draws["chosen"] * draws["by"].float())[:, None, None, None]


class Lighter(Darker):
    pass


class Soft(BatchOperation):
    def __init__(self, classes: int):
        self.classes = classes

    def __call__(self, images, labels, draws, step):
        return images, torch.nn.functional.one_hot(labels, self.classes).float() * 0.5 + step


def nothing():
    return {}


class Late(ImageOperation):
    stage = "later"


class Uneven(ImageOperation):
    def draw(self, places):
        return {"all": np.zeros(3)}

    def __call__(self, images, draws):
        return images


class Worded(ImageOperation):
    def draw(self, places):
        return {"what": np.full(len(places.positions), "m")}

    def __call__(self, images, draws):
        return images


@pytest.mark.parametrize(
    ("items", "options", "keys", "text"),
    [
        ([{"cutout": {"size": 33}}], {}, "data.augment data.image_size", "cutout: size: larger than the image (32 pixels)"),
        ([{"crop": {"padding": 32}}], {}, "data.augment data.image_size", "crop: padding: must be smaller than the image"),
        ([{"progressive_resize": {"sizes": [24, 32], "until": "1ep"}}], {}, "data.augment data.image_size",
         "progressive_resize: sizes: must be smaller than the image (32 pixels)"),
        ([{"progressive_resize": {"sizes": [], "until": "1ep"}}], {}, "data.augment", "sizes: Tuple should have at least 1 item"),
        ([{"progressive_resize": {"sizes": [24]}}], {}, "data.augment", "progressive_resize: until: has to be given"),
        ([{"progressive_resize": {"sizes": [24], "until": "0ep"}}], {}, "data.augment", "until: must be longer than zero"),
        ([{"progressive_resize": {"sizes": [24], "until": "1ep"}}, "cutmix"], {}, "data.augment",
         "progressive_resize must come last: cutmix is drawn for images of full size"),
        (["randaugment"], {}, "data.augment data.loader", "randaugment runs in CPU workers: set data.loader streaming"),
        (["cutout"], {}, "data.augment", "cutout: size: has to be given"),
        ([{"crop": {"paddin": 4}}], {}, "data.augment", "crop: paddin: unknown argument; did you mean padding?"),
        ([{"crop": {"mode": "wrap"}}], {}, "data.augment", "crop: mode: should be 'zeros' or 'reflect'"),
        ([{"crop": {"padding": True}}], {}, "data.augment", "crop: padding: should be a number, not true or false"),
        (["flipp"], {}, "data.augment", "unknown; did you mean flip?"),
        (["mixup", "flip"], {}, "data.augment",
         "flip works before normalisation, mixup on batches with their labels: put flip before mixup"),
        ([{"cutout": {"size": 4}}, "crop"], {}, "data.augment",
         "crop works before normalisation, cutout after normalisation: put crop before cutout"),
        ([f"{HERE}:Late"], {}, "data.augment", f"{HERE}:Late: unknown stage 'later'; valid: uint8, float, batch"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_list_is_told(items, options, keys, text):
    ((named, message),) = found(*items, **options)
    assert named == tuple(keys.split())
    assert text in message


def test_all_that_is_wrong_is_told_at_once():
    messages = [text for _, text in found({"cutout": {"size": 0}}, {"crop": {"padding": -1, "mode": 3}}, "nothing")]
    assert len(messages) == 4
    assert len(found("mixup", "cutmix")) == 2


def test_what_is_near_a_problem_is_fine():
    assert found({"crop": {"padding": 31}}, "flip", {"cutout": {"size": 32}}, "mixup") == []
    assert found("cutmix", {"progressive_resize": {"sizes": [31], "until": "1step"}}) == []
    assert found("flip", "crop", "randaugment", f"{HERE}:Darker", f"{HERE}:Soft", loader="streaming") == []


def test_no_step_at_full_size_is_told_when_the_steps_are_known():
    build({"progressive_resize": {"sizes": [24], "until": "19step"}})
    with pytest.raises(InputError, match=r"progressive_resize: until = 4ep leaves none of the 20 steps at full size"):
        build({"progressive_resize": {"sizes": [24], "until": "4ep"}})


@pytest.mark.parametrize(("name", "shape"), [("Uneven", "float64 of shape [3]"), ("Worded", "<U1 of shape [0]")])
def test_draws_that_are_not_one_number_an_image_are_told(name, shape):
    with pytest.raises(
        InputError, match=rf"data\.augment: {name}\.draw, .*: should be one number for each of the 0 images, not "
    ) as error:
        build(f"{HERE}:{name}")
    assert shape in str(error.value)


class Unfinished(ImageOperation):
    """Without what it does to images."""


def test_an_operation_that_does_nothing_is_told_before_anything_is_trained():
    with pytest.raises(InputError, match=rf"data\.augment: {HERE}:Unfinished: .*abstract method '?__call__'?"):
        build(f"{HERE}:Unfinished")


def test_what_is_no_operation_is_told():
    with pytest.raises(InputError, match=rf"data\.augment: {HERE}:nothing: should be an .*ImageOperation .*, not dict"):
        build(f"{HERE}:nothing")


def test_an_operation_of_ones_own_draws_by_the_place_alone_and_beside_all_others():
    """Integers and floats; another class, or the same once more, draws others."""
    pipeline = build(f"{HERE}:Darker", f"{HERE}:Lighter", {f"{HERE}:Darker": {"most": 2.0}})
    part = pipeline.on_floats
    whole = part.draw(places(5000))
    first, second, third = part.unpack(whole)
    assert [(name, values.dtype) for name, values in first.items()] == [("chosen", torch.int64), ("by", torch.float64)]
    assert torch.equal(part.draw(places(100, first=300)), whole[:, 300:400])
    flips = torch.from_numpy(Flip().draw(places(5000))["mirrored"]).double()
    columns = [flips, *(values.double() for draws in (first, second, third) for values in draws.values())]
    assert np.abs(np.corrcoef(np.stack(columns)) - np.eye(7)).max() < 0.06
    assert third["by"].max() > 1.9
    images = torch.zeros(5000, 2, 2, 3)
    darker, labels = part(images.clone(), torch.arange(5000), whole, 0)
    expected = sum(draws["chosen"] * draws["by"].float() for draws in (first, second, third))
    torch.testing.assert_close(darker[:, 0, 0, 0], -expected)
    assert torch.equal(labels, torch.arange(5000))


def test_an_operation_on_batches_gets_the_number_of_classes_and_the_step():
    _, labels = build(f"{HERE}:Soft").on_floats(torch.zeros(2, 4, 4, 3), torch.tensor([0, 2]), torch.empty(0, 2), 7)
    assert labels.tolist() == [[7.5, 7.0, 7.0], [7.0, 7.0, 7.5]]


@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_a_run_with_an_operation_of_ones_own(tmp_path, loader):
    settings = {"data.augment": [{f"{HERE}:Darker": {"most": 3.0}}], "data.loader": loader, "data.workers": 0}
    seen, plain = (by_hand.train(tmp_path, one)[1] for one in (settings, {}))
    both = zip(seen.steps[0].images, plain.steps[0].images, strict=True)
    darker = torch.cat([(one - other).mean(dim=(1, 2, 3)) for one, other in both])
    part = Pipeline([Darker(3.0)]).on_floats
    (draws,) = part.unpack(part.draw(places(12, seed=0)))
    torch.testing.assert_close(darker, -(draws["chosen"] * draws["by"]).float(), atol=1e-5, rtol=0)


def test_an_installed_package_adds_an_operation_by_an_entry_point(tmp_path, monkeypatch):
    text = (
        "from distcnn.data.augment.operation import ImageOperation\n\n\n"
        "class Invert(ImageOperation):\n"
        "    def __call__(self, images, draws):\n"
        "        return 255 - images\n"
    )
    points = {"distcnn.augmentations": {"invert": "augment_for_test:Invert"}}
    install(tmp_path, "augment_for_test", {"augment_for_test.py": text}, points)
    monkeypatch.syspath_prepend(tmp_path)
    known = augment.OPERATIONS
    fresh = Registry(known.kind, known.builtin, given=known.given)  # what is installed is looked up once
    for place in ("distcnn.data.augment", "distcnn.data.augment.pipeline"):
        monkeypatch.setattr(f"{place}.OPERATIONS", fresh)
    assert found("flip", "invert") == []
    images = torch.full((2, 4, 4, 3), 55, dtype=torch.uint8)
    on_bytes = build("invert").on_bytes
    assert (on_bytes(images, on_bytes.draw(places(2))) == 200).all()
    sys.modules.pop("augment_for_test")
