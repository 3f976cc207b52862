"""When it is said that the GPU waits for the host, why, and what would help."""

import pytest

from distcnn.config.plan import make_plan
from distcnn.config.schema import Config, TrainConfig
from distcnn.training.host_bound import HostBound
from tests import by_hand
from tests.records import metrics


def plan(micro=32, world=1):
    config = Config(train=TrainConfig(batch_size=128, micro_batch=micro))
    return make_plan(config, train_images=1280, test_images=10, world_size=world)


def said(points, **options):
    host_bound = HostBound(plan(**{k: v for k, v in options.items() if k != "streaming"}),
                           streaming=options.get("streaming", False))  # fmt: skip
    return [host_bound.log_point(*point) for point in points]


IDLE, BUSY = (1.0, 2e-4, 0.1, 0.1), (1.0, 0.3, 0.1, 0.1)  # seconds, of which for the device, for others, for data


def test_it_is_said_once_after_five_log_points_in_a_row():
    words = said([IDLE] * 4 + [BUSY] + [IDLE] * 12)
    assert [bool(word) for word in words] == [False] * 9 + [True] + [False] * 7


FULL_QUEUE = (10.0, 0.01, 0.1, 9.0)  # the host has stood in its launches, or where it made a batch's, until then


@pytest.mark.parametrize("point", [(1.0, 0.06, 0.1, 0.9), (1.0, 0.0, 0.6, 0.1), FULL_QUEUE])
def test_a_device_that_is_waited_for_or_a_host_that_waits_for_others_is_not_bound_by_the_host(point):
    assert not any(said([point] * 20))


def test_nothing_is_said_on_a_cpu(tmp_path):
    """Which is never waited for."""
    result, _ = by_hand.train(tmp_path, {"tracking.log_every": 1, "train.duration": "12step"})
    assert "host_bound" not in [line["event"] for line in metrics(result.folder, "event")]


def test_launches_and_data_are_told_apart():
    launches, data = (1.0, 0.0, 0.2, 0.3), (1.0, 0.0, 0.2, 0.6)
    assert (
        "a larger train.micro_batch (now 32, at most 128 for this batch), or model.compile" in said([launches] * 5)[4]
    )
    assert "a larger train.micro_batch (now 32, at most 64 " in said([launches] * 5, world=2)[4]
    whole = said([launches] * 5, micro=128)[4]
    assert "model.compile; train.micro_batch, 128, is as large as" in whole
    streamed = said([data] * 5, streaming=True)[4]
    assert "the GPU waits for batches, which take 75% of the host's time; try more data.workers" in streamed
    assert "data.workers" not in said([data] * 5)[4]
    assert all("micro_batch" not in word for word in (streamed, said([data] * 5)[4]))
