"""Muon for the convolutions between hidden channels, AdamW for everything else.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) equalises the singular values of a weight's
averaged gradient before the step, so that the weight also learns in directions that are rare in the gradient. It takes
several times as long as AdamW, some 5 % of a training step of 16 images on two cores, and a short training reaches
much higher recall: benchmarks/results/recall-muon_*.md.

Each process of a distributed training computes the same step itself. Rounding may differ between different processors;
the loop synchronises the weights at every evaluation.

`torch.optim.Muon` of PyTorch accepts matrices only and computes in bfloat16, which many CPUs emulate.

Legend of shape suffixes: G weights of one shape, O output channels, I input channels, R rows, C columns, R <= C.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic polynomial of Jordan et al.: five rounds map values of 0.002 to 1 into 0.68 to 1.21."""
_NUM_ROUNDS = 5
_TINY = 1e-7
_IMAGE_CHANNELS = 3


class Muon(torch.optim.AdamW):
    """Muon for groups with `hidden=True`, fused AdamW for the others; state and loading as in AdamW."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], rms: float) -> None:
        """Prepares the groups.

        Args:
            groups: Each with `params`, `hidden` and options of AdamW. The parameters of a hidden group are weights of
                convolutions, (O, I, H, W).
            lr: Learning rate.
            betas: AdamW's; the first is also the momentum of the hidden groups.
            rms: Root mean square of the step of a hidden weight's elements, in learning rates.
        """
        super().__init__([{"rms": rms, **group} for group in groups], lr=lr, betas=betas, fused=True)
        # Fused AdamW skips a float16 step that overflowed, but the hidden groups do not. So the scaler decides, at the
        # cost of waiting for the device.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves all weights by their gradients.

        Raises:
            ValueError: `closure` is not None.
        """
        if closure is not None:
            raise ValueError("closure: expected None, because gradients are averaged before the step")
        hidden_grads: list[tuple[nn.Parameter, Tensor]] = []
        for group in self.param_groups:
            if group["hidden"]:
                weights = [p for p in group["params"] if p.grad is not None]
                weights.sort(key=lambda p: p.shape)
                for _, alike in itertools.groupby(weights, key=lambda p: p.shape):
                    self._move(list(alike), group)
                hidden_grads += [(p, p.grad) for p in weights if p.grad is not None]
        # AdamW skips weights without a gradient.
        for weight, _ in hidden_grads:
            weight.grad = None
        try:
            return super().step()
        finally:
            for weight, grad in hidden_grads:
                weight.grad = grad

    def _move(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        """One step for weights of one shape."""
        momentum = group["betas"][0]
        grads = [p.grad for p in weights if p.grad is not None]
        averages = [self._average_of(p) for p in weights]
        torch._foreach_lerp_(averages, grads, 1 - momentum)
        # Nesterov momentum.
        steps = torch._foreach_lerp(grads, averages, momentum)
        moves = orthogonalize(torch.stack([_to_matrix(step) for step in steps]))
        # The root mean square of a matrix whose singular values are all 1.
        unit = 1 / math.sqrt(max(moves.shape[1:]))
        for weight, move in zip(weights, moves, strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(_to_weight(move, weight.shape), alpha=-group["lr"] * group["rms"] / unit)

    def _average_of(self, weight: nn.Parameter) -> Tensor:
        state = self.state[weight]
        if not state:
            # AdamW expects the step when it loads a state.
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["momentum"] = torch.zeros_like(weight)
        average: Tensor = state["momentum"]
        return average


def split(model: nn.Module, outputs: tuple[str, ...]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Splits off the weights between hidden channels.

    Hidden weights are those of convolutions, except for convolutions on the image, on few channels (depthwise and
    small groups), and of the outputs.

    Args:
        model: The network; its biases, norms and frozen weights are in neither list.
        outputs: Prefixes of the names of output layers.

    Returns:
        Hidden weights (O, I, H, W) with I > 3, and all others of more than one dimension.
    """
    hidden: list[nn.Parameter] = []
    outer: list[nn.Parameter] = []
    for name, weight in model.named_parameters():
        if weight.requires_grad and weight.ndim > 1:
            is_hidden = weight.ndim == 4 and weight.shape[1] > _IMAGE_CHANNELS and not name.startswith(outputs)
            (hidden if is_hidden else outer).append(weight)
    return hidden, outer


def orthogonalize(matrices: Tensor) -> Tensor:
    """Moves all singular values of each matrix near 1 and keeps its singular vectors.

    The Newton-Schulz iteration of Jordan et al., X <- aX + b(XX')X + c(XX')^2 X. Only the first and last product have
    the size of X: the iteration multiplies the polynomials of XX', a small square, and applies them to X once.

    Args:
        matrices: (G, R, C) or (G, C, R) float32.

    Returns:
        The same shape; singular values of at least 0.002 of the matrix's norm become 0.68 to 1.21, smaller ones less.
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalize(matrices.mT).mT
    a, b, c = _COEFFICIENTS
    x_GRC = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + _TINY)
    square_GRR = x_GRC @ x_GRC.mT
    one_RR = torch.eye(x_GRC.shape[1], dtype=x_GRC.dtype, device=x_GRC.device)
    product_GRR = None
    for is_last in (*[False] * (_NUM_ROUNDS - 1), True):
        factor_GRR = torch.baddbmm(square_GRR, square_GRR, square_GRR, beta=b, alpha=c) + a * one_RR
        product_GRR = factor_GRR if product_GRR is None else factor_GRR @ product_GRR
        if not is_last:
            square_GRR = factor_GRR @ square_GRR @ factor_GRR
    return product_GRR @ x_GRC


def _to_matrix(weight_OIHW: Tensor) -> Tensor:
    """Returns (O, H*W*I), the memory order of channels-last weights."""
    return weight_OIHW.permute(0, 2, 3, 1).flatten(1)


def _to_weight(matrix: Tensor, shape: torch.Size) -> Tensor:
    """Converts (O, H*W*I) back to (O, I, H, W)."""
    num_outputs, num_inputs, height, width = shape
    return matrix.view(num_outputs, height, width, num_inputs).permute(0, 3, 1, 2)
