"""Optimizer, learning rate and average of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from edgerpn.errors import check_setting
from edgerpn.train.learning.muon import Muon, split

_LONGEST_WARMUP = 1 / 6
"""Largest share of a run for the warm-up."""
_OUTPUTS = ("head.objectness", "head.deltas")
"""Prefixes of the layers that compute logits and deltas."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Optimizer, learning rate and average of the weights."""

    kind: Literal["muon", "adamw", "sgd"] = "muon"
    """Muon for convolutions between hidden channels and AdamW for the rest, AdamW alone, or SGD as in the paper."""
    learning_rate: float = 2.8e-3
    """Peak learning rate for `data.batch_size`; if that is 0, for `reference_batch_size`."""
    reference_batch_size: int = 8
    """Batch size of `learning_rate` if `data.batch_size` is 0. The learning rate for the automatic batch size grows in
    proportion to it with SGD, and with its square root otherwise."""
    final_learning_rate: float = 0.02
    """Learning rate at the end of the cosine, as a fraction of the peak."""
    warmup_steps: int = 100
    """Steps of the linear warm-up from near 0; fewer in a run of less than six times as many steps."""
    momentum: float = 0.9
    """Momentum of SGD and Muon, beta1 of AdamW (also of its part in Muon)."""
    muon_rms: float = 0.5
    """muon: root mean square of the step of hidden convolution weights, in learning rates."""
    weight_decay: float = 0.02
    """Weight decay of convolution weights; biases and norms do not decay."""
    max_grad_norm: float = 10.0
    """Limit of the gradient norm; larger gradients are scaled down."""
    ema_decay: float = 0.998
    """Decay of the average of the weights, which is evaluated and exported; 0: no average."""
    ema_warmup_steps: int = 400
    """The decay rises from 0 over about this many steps, so that the average forgets early weights."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.max_grad_norm <= 0:
            raise ValueError("learning_rate: expected a positive number, and max_grad_norm too")
        check_setting(self.muon_rms > 0, "muon_rms", "a positive number", self.muon_rms)
        check_setting(0 <= self.momentum < 1, "momentum", "0 to below 1", self.momentum)
        check_setting(self.weight_decay >= 0, "weight_decay", "at least 0", self.weight_decay)
        check_setting(0 <= self.ema_decay < 1, "ema_decay", "0 to below 1", self.ema_decay)
        check_setting(
            0 <= self.final_learning_rate <= 1, "final_learning_rate", "0..1 (a fraction)", self.final_learning_rate
        )
        if self.warmup_steps < 0 or self.ema_warmup_steps < 1 or self.reference_batch_size < 1:
            raise ValueError(
                "warmup_steps: expected at least 0, and ema_warmup_steps and reference_batch_size at least 1"
            )


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Creates the optimizer, with weight decay on convolution weights only."""
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    betas = (config.momentum, 0.999)
    if config.kind == "muon":
        hidden, outer = split(model, _OUTPUTS)
        decay = config.weight_decay
        kinds = ((hidden, decay, True), (outer, decay, False), (plain, 0.0, False))
        parts = [{"params": p, "weight_decay": d, "hidden": h} for p, d, h in kinds if p]
        return Muon(parts, lr=config.learning_rate, betas=betas, rms=config.muon_rms)
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if config.kind == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True)
    # Fused: a single pass over all weights. On a CPU the default, a loop over tensors, takes a tenth of the step.
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)


def scaled_learning_rate(config: OptimizerConfig, batch_size: int) -> float:
    """Returns the peak learning rate for batches of another size than `reference_batch_size`.

    Source: SGD in proportion (arXiv:1706.02677); Adam with the square root (arXiv:2205.10287). The square root for
    Muon is an assumption.
    """
    ratio = batch_size / config.reference_batch_size
    return config.learning_rate * (ratio if config.kind == "sgd" else math.sqrt(ratio))


def learning_rate(step: int, progress: float, config: OptimizerConfig) -> float:
    """Returns the learning rate of a step: linear warm-up, then a cosine over `progress` (0 to 1).

    The warm-up ends after a sixth of the run at the latest, so that a short run is more than a warm-up.
    """
    warmup = min(1.0, max((step + 1) / (config.warmup_steps + 1), progress / _LONGEST_WARMUP))
    cosine = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    fraction = config.final_learning_rate + (1 - config.final_learning_rate) * cosine
    return config.learning_rate * warmup * fraction


@torch.no_grad()
def scale_gradients(parameters: Sequence[nn.Parameter], factor: Tensor, max_norm: float) -> Tensor:
    """Multiplies all gradients by `factor`, and limits their common norm to `max_norm`.

    Args:
        parameters: Those without a gradient are skipped.
        factor: Scalar on the gradients' device.
        max_norm: Largest Euclidean norm of all gradients together.

    Returns:
        The norm before it was limited, a scalar on the gradients' device.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(grads, foreach=True) * factor
    torch._foreach_mul_(grads, factor * (max_norm / (norm + 1e-6)).clamp(max=1))
    return norm


class WeightAverage:
    """Exponential moving average of a model's weights and batch-norm statistics."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        """Copies the present weights of `model`; the model must keep the same tensor objects."""
        self.config = config
        self.num_updates = 0
        self._source = {name: value.detach() for name, value in model.state_dict().items()}
        self.state = {name: value.clone() for name, value in self._source.items()}

    @property
    def state(self) -> dict[str, Tensor]:
        """The average, by the names of the model's state dict."""
        return self._state

    @state.setter
    def state(self, values: dict[str, Tensor]) -> None:
        self._state = values
        floats = [name for name, value in values.items() if value.dtype.is_floating_point]
        others = [name for name, value in values.items() if not value.dtype.is_floating_point]
        self._floats = [values[name] for name in floats], [self._source[name] for name in floats]
        self._others = [values[name] for name in others], [self._source[name] for name in others]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the model's weights."""
        self.num_updates += 1
        decay = self.config.ema_decay * (1 - math.exp(-self.num_updates / self.config.ema_warmup_steps))
        torch._foreach_lerp_(*self._floats, 1 - decay)
        if self._others[0]:
            torch._foreach_copy_(*self._others)
