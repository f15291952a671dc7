"""The state of a training run: `run.setup` creates it, `run.saving` writes it to last.pt and restores it.

Legend of shape suffixes: A anchors of all levels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edgerpn.train.config import TrainSettings
from edgerpn.train.data.coco import Dataset
from edgerpn.train.data.loader import TrainLoader
from edgerpn.train.learning.optimizer import WeightAverage
from edgerpn.train.network.anchors import grid_anchors
from edgerpn.train.network.model import Rpn
from edgerpn.train.network.proposal_stage import ProposalConfig
from edgerpn.train.run.device import Compute
from edgerpn.train.run.folder import RunFolder, TensorBoardLog
from edgerpn.train.run.ranks import Ranks


@dataclass(kw_only=True, slots=True)
class RunProgress:
    """Counters of a run, saved in last.pt."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    evaluations: int = 0
    """Evaluations that were due so far, whether made or left out."""
    evaluated_step: int = 0
    """Step of the newest evaluation."""
    best_metrics: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class TrainingRun:
    settings: TrainSettings
    folder: RunFolder
    train_set: Dataset
    val_set: Dataset
    loader: TrainLoader
    ranks: Ranks
    model: Rpn
    network: Callable[[Tensor], tuple[list[Tensor], list[tuple[Tensor, Tensor]]]]
    """`RpnWithMaps` of the model, compiled or wrapped for several processes if the settings ask for it."""
    parallel: DistributedDataParallel | None
    """The wrapper that averages gradients over processes; None in a single process."""
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    scaler: torch.amp.GradScaler
    compute: Compute
    parameters: tuple[nn.Parameter, ...]
    progress: RunProgress
    tensorboard: TensorBoardLog | None = None
    anchors: dict[tuple[int, int], list[Tensor]] = field(default_factory=dict)
    """Anchors of each level by height and width of the views; filled on demand."""

    def anchors_of(self, view_hw: tuple[int, int]) -> list[Tensor]:
        """Returns the anchors of each level on the device; the run owns them."""
        if view_hw not in self.anchors:
            levels = grid_anchors(self.settings.model.anchors, view_hw)
            self.anchors[view_hw] = [level.to(self.compute.device) for level in levels]
        return self.anchors[view_hw]

    @property
    def fraction(self) -> float:
        """Progress, 0..1; slightly above 1 when the time of the run is over."""
        if self.settings.loop.minutes:
            return self.progress.seconds / (60 * self.settings.loop.minutes)
        return self.progress.step / (self.settings.loop.epochs * self.loader.batches_per_epoch)

    @property
    def num_due_evaluations(self) -> int:
        """Evaluations whose place in the run lies behind it."""
        return int(self.fraction * self.settings.loop.evaluations + 1e-9)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights to evaluate and export: the average, if the run keeps one."""
        return self.average.state if self.settings.optimizer.ema_decay else self.model.state_dict()


def measured_proposals(settings: TrainSettings) -> ProposalConfig:
    """Returns the proposal stage of a run's evaluations: AR@1000 needs 1000 proposals out of all candidates."""
    return dataclasses.replace(settings.proposals, num_proposals=1000, nms_candidates=None, score_threshold=0.0)
