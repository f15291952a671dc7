"""Muon's step against matrices computed by the definition, and its place in a run."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from edgerpn.train.config import load_settings
from edgerpn.train.learning.muon import Muon, orthogonalize, split
from edgerpn.train.learning.optimizer import OptimizerConfig, make_optimizer
from edgerpn.train.network.model import Rpn

OUTPUTS = ("head.objectness", "head.deltas")


def iterated(matrix: Tensor) -> Tensor:
    """The quintic iteration as it is written down, in float64."""
    x = matrix.double()
    is_tall = x.shape[0] > x.shape[1]
    x = (x.T if is_tall else x) / x.norm()
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if is_tall else x


@pytest.mark.parametrize("shape", [(8, 8), (16, 144), (144, 16), (1, 9), (128, 1152)])
@pytest.mark.parametrize("least", [1.0, 1e-6])
def test_the_products_in_the_small_square_give_what_the_iteration_gives(shape: tuple[int, int], least: float) -> None:
    torch.manual_seed(0)
    left, values, right = torch.linalg.svd(torch.randn(2, *shape), full_matrices=False)
    values = values * torch.logspace(0, math.log10(least), values.shape[1])
    matrices = left @ torch.diag_embed(values) @ right
    for matrix, found in zip(matrices, orthogonalize(matrices), strict=True):
        expected = iterated(matrix)
        assert (found - expected).norm() < 2e-3 * expected.norm()


def test_singular_values_become_about_one_and_vectors_stay() -> None:
    torch.manual_seed(1)
    matrix = torch.randn(24, 60)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inner = left.T @ orthogonalize(matrix[None])[0] @ right.T
    values = torch.diagonal(inner)
    assert 0.68 < float(values.min()) <= float(values.max()) < 1.21
    assert (inner - torch.diag(values)).abs().max() < 1e-4


def test_a_gradient_of_zeros_moves_nothing() -> None:
    assert torch.equal(orthogonalize(torch.zeros(1, 4, 9)), torch.zeros(1, 4, 9))


def test_hidden_weights_neither_take_the_image_nor_make_an_output() -> None:
    model = Rpn(load_settings().model)
    hidden, outer = split(model, OUTPUTS)
    names = {id(weight): name for name, weight in model.named_parameters()}
    first = next(name for name, weight in model.named_parameters() if weight.ndim == 4)
    assert [names[id(w)] for w in outer] == [first, "head.objectness.weight", "head.deltas.weight"]
    assert len(hidden) + len(outer) == sum(p.ndim > 1 for p in model.parameters())
    depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1))
    assert [tuple(w.shape) for part in split(depthwise, OUTPUTS) for w in part] == [(8, 8, 1, 1), (8, 1, 3, 3)]


def small() -> nn.Sequential:
    """One weight that sees the image, and hidden ones: two of one shape, 8 x 72, a wide and a tall one."""
    torch.manual_seed(2)
    layers = [nn.Conv2d(3, 8, 3, padding=1), *(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))]
    return nn.Sequential(*layers, nn.Conv2d(8, 4, 1), nn.Conv2d(4, 16, 1))


def settings(**changes: object) -> OptimizerConfig:
    return OptimizerConfig(**{"learning_rate": 0.1, "weight_decay": 0.5, **changes})  # type: ignore[arg-type]


def set_grads(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def flat(weight: Tensor) -> Tensor:
    return weight.permute(0, 2, 3, 1).flatten(1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_two_steps_of_hidden_weights_are_those_of_the_definition(memory_format: torch.memory_format) -> None:
    model = small().to(memory_format=memory_format)  # type: ignore[call-overload]
    optimizer = make_optimizer(model, settings(muon_rms=0.3, momentum=0.8))
    hidden, _ = split(model, OUTPUTS)
    assert [tuple(flat(w).shape) for w in hidden] == [(8, 72), (8, 72), (4, 8), (16, 4)]
    expected = [w.detach().clone() for w in hidden]
    averages = [torch.zeros_like(w) for w in expected]
    for seed in range(2):
        set_grads(model, seed)
        grads = [w.grad.clone() for w in hidden if w.grad is not None]
        for i, grad in enumerate(grads):
            averages[i] = 0.8 * averages[i] + 0.2 * grad
            direction = iterated(flat(0.2 * grad + 0.8 * averages[i])).float()
            # 0.3 of the learning rate, were all singular values 1.
            moved = flat(expected[i]) * (1 - 0.1 * 0.5) - 0.1 * 0.3 * math.sqrt(max(direction.shape)) * direction
            num_outputs, num_inputs, height, width = grad.shape
            expected[i] = moved.view(num_outputs, height, width, num_inputs).permute(0, 3, 1, 2)
        optimizer.step()
        for found, weight, grad in zip(hidden, expected, grads, strict=True):
            torch.testing.assert_close(found.detach(), weight, rtol=1e-4, atol=1e-5)
            assert found.grad is not None
            assert torch.equal(found.grad, grad)
    assert all(w.is_contiguous(memory_format=memory_format) for w in hidden)


def test_a_weight_without_a_gradient_stays() -> None:
    model = small()
    optimizer = make_optimizer(model, settings())
    set_grads(model, 0)
    (moves, stays, *_), _ = split(model, OUTPUTS)
    stays.grad = None
    before = [weight.detach().clone() for weight in (moves, stays)]
    optimizer.step()
    assert [torch.equal(*pair) for pair in zip((moves, stays), before, strict=True)] == [False, True]


def test_everything_else_moves_as_under_adamw() -> None:
    muon, adamw = small(), small()
    optimizers = [make_optimizer(muon, settings()), make_optimizer(adamw, settings(kind="adamw"))]
    for seed in range(3):
        for model, optimizer in zip((muon, adamw), optimizers, strict=True):
            set_grads(model, seed)
            optimizer.step()
    for (name, ours), theirs in zip(muon.named_parameters(), adamw.parameters(), strict=True):
        # Here, without a head, all convolutions but the first are hidden.
        is_hidden = name.endswith("weight") and name != "0.weight"
        assert torch.equal(ours, theirs) != is_hidden, name


def test_the_settings_determine_the_size_of_a_step() -> None:
    model = small()
    weight = split(model, OUTPUTS)[0][0]
    before = weight.detach().clone()
    optimizer = make_optimizer(model, settings(weight_decay=0.0, muon_rms=0.25))
    set_grads(model, 0)
    optimizer.step()
    step = weight.detach() - before
    assert float(step.square().mean().sqrt()) == pytest.approx(0.1 * 0.25, rel=0.2)


def test_a_restored_state_continues_without_a_difference() -> None:
    straight = small()
    optimizer = make_optimizer(straight, settings())
    for seed in range(2):
        set_grads(straight, seed)
        optimizer.step()
    resumed = copy.deepcopy(straight)
    successor = make_optimizer(resumed, settings())
    successor.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, one in ((straight, optimizer), (resumed, successor)):
        set_grads(model, 2)
        one.step()
    for ours, theirs in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_step_that_overflowed_in_float16_moves_nothing() -> None:
    model = small()
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer(model, settings())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for is_good in (False, True):
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(1, 3, 8, 8)).sum()).backward()
        if not is_good:
            grad = next(model.parameters()).grad
            assert grad is not None
            grad[0] = math.inf
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        same = [torch.equal(before[name], value) for name, value in model.state_dict().items()]
        assert all(same) != is_good
        assert any(same) != is_good


def test_a_closure_is_refused() -> None:
    optimizer = make_optimizer(small(), settings())
    assert isinstance(optimizer, Muon)
    with pytest.raises(ValueError, match="closure: expected None"):
        optimizer.step(lambda: 0.0)


def test_a_step_of_no_size_is_refused() -> None:
    with pytest.raises(ValueError, match="muon_rms: expected a positive number, got 0"):
        settings(muon_rms=0.0)
