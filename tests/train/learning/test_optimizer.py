"""Learning rate, weight decay and the average of the weights, against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from edgerpn.train.learning.optimizer import OptimizerConfig, WeightAverage, learning_rate, make_optimizer


def config(**changes: object) -> OptimizerConfig:
    return OptimizerConfig(**{"learning_rate": 0.1, "final_learning_rate": 0.02, "warmup_steps": 4, **changes})  # type: ignore[arg-type]


def test_the_learning_rate_warms_up_linearly_and_falls_along_a_cosine() -> None:
    # Warm-up of 4 steps: 1/5, 2/5, ... of the peak, all of it from step 4 on.
    assert [learning_rate(step, 0.0, config()) for step in range(6)] == pytest.approx(
        [0.02, 0.04, 0.06, 0.08, 0.1, 0.1]
    )
    # Half of the run is half of the height: 0.02 + 0.98 / 2 = 0.51; the end is 0.02 of the peak.
    assert learning_rate(100, 0.5, config()) == pytest.approx(0.051)
    assert learning_rate(100, 0.25, config()) == pytest.approx(0.1 * (0.02 + 0.98 * (2 + math.sqrt(2)) / 4))
    assert learning_rate(100, 1.0, config()) == pytest.approx(0.002)
    # A run by the clock may overshoot its end by a step.
    assert learning_rate(100, 1.2, config()) == pytest.approx(0.002)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert learning_rate(0, 0.0, config(warmup_steps=0)) == pytest.approx(0.1)
    # Ten steps into a warm-up of a thousand, but a twelfth and a sixth of the run.
    short = config(warmup_steps=999, final_learning_rate=1.0)
    rates = [learning_rate(9, progress, short) for progress in (0.0, 1 / 12, 1 / 6, 1.0)]
    assert rates == pytest.approx([0.001, 0.05, 0.1, 0.1])


def test_weights_decay_and_biases_and_norms_do_not() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for kind in ("adamw", "sgd"):
        optimizer = make_optimizer(model, config(kind=kind, weight_decay=0.5, momentum=0.8))
        decayed, plain = optimizer.param_groups
        assert [p.ndim for p in decayed["params"]] == [4]
        assert len(plain["params"]) == 3
        assert (decayed["weight_decay"], plain["weight_decay"]) == (0.5, 0.0)
    adamw = make_optimizer(model, config(kind="adamw", momentum=0.8))
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["betas"] == (0.8, 0.999)
    sgd = make_optimizer(model, config(kind="sgd", momentum=0.8))
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.param_groups[0]["momentum"] == 0.8


def test_the_average_moves_by_the_hand_computed_decay() -> None:
    model = nn.BatchNorm2d(1)
    average = WeightAverage(model, config(ema_decay=0.9, ema_warmup_steps=2))
    expected = {"weight": 1.0, "running_mean": 0.0}
    for update, (weight, mean) in enumerate([(3.0, 1.0), (5.0, -2.0), (0.0, 4.0)], start=1):
        with torch.no_grad():
            model.weight.fill_(weight)
            assert model.running_mean is not None
            model.running_mean.fill_(mean)
            assert model.num_batches_tracked is not None
            model.num_batches_tracked.fill_(10 * update)
        average.update()
        decay = 0.9 * (1 - math.exp(-update / 2))
        for name, value in (("weight", weight), ("running_mean", mean)):
            expected[name] = decay * expected[name] + (1 - decay) * value
            assert average.state[name].item() == pytest.approx(expected[name], rel=1e-5)
        assert average.state["num_batches_tracked"].item() == 10 * update
    assert average.num_updates == 3


def test_the_average_is_a_copy() -> None:
    model = nn.Conv2d(1, 1, 1)
    average = WeightAverage(model, config())
    before = average.state["weight"].clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    assert torch.equal(average.state["weight"], before)
    average.update()
    assert not average.state["weight"].requires_grad


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate: expected a positive number"),
        ({"max_grad_norm": 0.0}, "learning_rate: expected a positive number, and max_grad_norm too"),
        ({"ema_decay": 1.0}, "ema_decay: expected 0 to below 1"),
        ({"final_learning_rate": 1.5}, "final_learning_rate: expected 0..1"),
        ({"warmup_steps": -1}, "warmup_steps: expected at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)
