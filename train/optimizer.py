"""Optimizer, learning rate and weight averaging."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """How the weights move."""

    kind: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum as in the paper."""
    learning_rate: float = 2e-3
    """Peak learning rate, for the configured batch size."""
    final_learning_rate: float = 0.02
    """Learning rate at the end of the cosine, as a fraction of the peak."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from near 0."""
    momentum: float = 0.9
    """Momentum of SGD, or beta1 of AdamW."""
    weight_decay: float = 0.02
    """Decay of convolution weights; biases and norms have none."""
    max_grad_norm: float = 10.0
    """Gradients are scaled down to this norm at most."""
    ema_decay: float = 0.998
    """Decay of the average of the weights that is evaluated and exported; 0: no average."""
    ema_warmup_steps: int = 200
    """The decay rises from 0 over about as many steps, so that early weights are forgotten."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        if self.learning_rate <= 0 or self.max_grad_norm <= 0:
            raise ValueError("learning_rate: expected a positive number, and max_grad_norm too")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected 0 to below 1, got {self.ema_decay}")
        if not 0 <= self.final_learning_rate <= 1:
            raise ValueError(f"final_learning_rate: expected 0..1 (a fraction), got {self.final_learning_rate}")
        if self.warmup_steps < 0 or self.ema_warmup_steps < 1:
            raise ValueError("warmup_steps: expected at least 0, and ema_warmup_steps at least 1")


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer, with weight decay on convolution weights only."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if config.kind == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.momentum, 0.999))


def learning_rate(step: int, progress: float, config: OptimizerConfig) -> float:
    """Learning rate of a step: linear warm-up, then a cosine over `progress` (0 at the start, 1 at the end)."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    cosine = 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    fraction = config.final_learning_rate + (1 - config.final_learning_rate) * cosine
    return config.learning_rate * warmup * fraction


class WeightAverage:
    """Exponential moving average of a model's weights and batch-norm statistics."""

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        """Starts from the model's present weights, which it copies."""
        self.config = config
        self.num_updates = 0
        self.state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model's weights."""
        self.num_updates += 1
        decay = self.config.ema_decay * (1 - math.exp(-self.num_updates / self.config.ema_warmup_steps))
        floats: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, value in model.state_dict().items():
            if value.dtype.is_floating_point:
                floats[0].append(self.state[name])
                floats[1].append(value)
            else:
                self.state[name].copy_(value)
        torch._foreach_lerp_(floats[0], floats[1], 1 - decay)
