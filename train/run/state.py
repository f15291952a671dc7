"""The state that a training run carries: made by `run_setup`, saved in last.pt and restored by `run_saving`.

Legend of shape suffixes: A anchors of all levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edgerpn.train.config import TrainSettings
from edgerpn.train.data.coco import Dataset
from edgerpn.train.data.loader import TrainLoader
from edgerpn.train.learning.optimizer import WeightAverage
from edgerpn.train.network.anchors import grid_anchors
from edgerpn.train.network.model import Rpn
from edgerpn.train.run.device import Compute
from edgerpn.train.run.folder import RunFolder
from edgerpn.train.run.ranks import Ranks


@dataclass(kw_only=True, slots=True)
class RunProgress:
    """Counters of a run, saved in last.pt."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    evaluations: int = 0
    best_ar100: float = -1.0
    best_metrics: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class TrainingRun:
    """Everything that a run works with."""

    settings: TrainSettings
    folder: RunFolder
    train_set: Dataset
    val_set: Dataset
    loader: TrainLoader
    ranks: Ranks
    model: Rpn
    network: Callable[[Tensor], list[tuple[Tensor, Tensor]]]
    """The model as training calls it: compiled, and with gradients that go round, where that is asked for."""
    parallel: DistributedDataParallel | None
    """What lets the gradients go round, when there are several processes."""
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    scaler: torch.amp.GradScaler
    compute: Compute
    parameters: tuple[nn.Parameter, ...]
    progress: RunProgress
    tensorboard: Any = None
    anchors: dict[tuple[int, int], list[Tensor]] = field(default_factory=dict)
    """Anchors of each level for views of a height and width, made when first asked for."""

    def anchors_of(self, view_hw: tuple[int, int]) -> list[Tensor]:
        """Anchors of each level, on the device; they stay the run's."""
        if view_hw not in self.anchors:
            levels = grid_anchors(self.settings.model.anchors, view_hw)
            self.anchors[view_hw] = [level.to(self.compute.device) for level in levels]
        return self.anchors[view_hw]

    @property
    def fraction(self) -> float:
        """How much of the run is done, 0..1; a little above 1 when its time is over."""
        if self.settings.loop.minutes:
            return self.progress.seconds / (60 * self.settings.loop.minutes)
        return self.progress.step / (self.settings.loop.epochs * self.loader.batches_per_epoch)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights to evaluate and export: their average, when the run keeps one."""
        return self.average.state if self.settings.optimizer.ema_decay else self.model.state_dict()
