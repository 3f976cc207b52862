"""EMA and Lookahead against their formulas."""

import pytest
import torch
from torch import nn

from distcnn.config.schema import TrainConfig
from distcnn.errors import InputError
from distcnn.training.averaging import Averages


def model_of(value):
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1))
    for p in model.parameters():
        nn.init.constant_(p, value)
    return model


def move(model, value):
    with torch.no_grad():
        for p in [*model.parameters(), model[1].running_mean]:
            p.fill_(value)


def test_the_ema_is_the_weighted_mean_of_all_weights_with_a_warm_up():
    model, expected = model_of(1.0), 1.0
    averages = Averages(model, TrainConfig(ema=0.5))
    for step, value in enumerate((3.0, -2.0, 7.0, 4.0, 4.0, 4.0, 4.0, 9.0), 1):
        move(model, value)
        averages.after_step(step, last=False)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    with averages.swapped_in():
        assert model[0].weight[0, 0].item() == pytest.approx(expected)
        assert model[1].bias.item() == pytest.approx(expected)
        assert model[1].running_mean.item() != 9.0
    assert model[0].weight[0, 0].item() == 9.0
    assert model[1].running_mean.item() == 9.0
    with averages.swapped_in():
        assert model[0].weight[0, 0].item() == pytest.approx(expected)  # it has survived the exchange


def test_lookahead_moves_slow_weights_every_so_many_steps_and_at_the_end():
    model = model_of(0.0)
    averages = Averages(model, TrainConfig(lookahead=3, lookahead_rate=0.25))
    seen = []
    for step, value in enumerate((1.0, 2.0, 4.0, 5.0, 9.0), 1):
        move(model, value)
        averages.after_step(step, last=step == 5)
        seen.append(model[0].weight[0, 0].item())
    assert seen == [1.0, 2.0, 0.25 * 4, 5.0, 1.0 + 0.25 * (9 - 1)]
    assert model[1].running_mean.item() == 9.0


def test_without_either_nothing_is_kept():
    model = model_of(1.0)
    averages = Averages(model, TrainConfig())
    averages.after_step(1, last=True)
    assert averages.state_dict() == {"ema": [], "slow": []}
    with averages.swapped_in():
        assert model[0].weight[0, 0].item() == 1.0


@pytest.mark.parametrize("wrong", [{"ema": [torch.zeros(3)], "slow": []}, {"ema": [1, 2, 3, 4, 5], "slow": []}])
def test_averages_of_another_network_are_refused(wrong):
    averages = Averages(model_of(1.0), TrainConfig(ema=0.5))
    with pytest.raises(InputError, match="averages that do not fit"):
        averages.load_state_dict(wrong)
