"""The two starts of the demo's trainings, the packaged general weights and random ones, and their own recall."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from edgerpn.demo.charts import Points
from edgerpn.train.checkpoint import Checkpoint, load_model
from edgerpn.train.config import TrainSettings
from edgerpn.train.data.splits import find_split
from edgerpn.train.evaluation import make_detector
from edgerpn.train.network.detector import Detector
from edgerpn.train.network.detector import detect as run_detector
from edgerpn.train.network.model import Rpn
from edgerpn.train.recall.measurement import Evaluation, measure
from edgerpn.train.run.loop import TrainResult

Start = Literal["general", "random"]
"""As in the setting loop.start."""

STARTS: Mapping[Start, str] = {"general": "general weights", "random": "random weights"}
"""The starts in the order of their trainings, and their names for people."""

_NUM_PROPOSALS = 1000
"""As the evaluations during a training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartedRun:
    """A training, and the recall of the weights that it started from."""

    before: Evaluation
    """Before the first step."""
    training: TrainResult

    @property
    def recall_curve(self) -> Points:
        """Seconds of training and AR@100, 0..1; the first point is before the first step, at 0 s."""
        evaluations = [row for row in self.training.history if row.get("AR@100") is not None]
        return [
            (0.0, self.before.metrics["AR@100"]),
            *((float(row["seconds"]), float(row["AR@100"])) for row in evaluations),
        ]

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the training."""
        return max(int(row["step"]) for row in self.training.history)


def start_detector(start: Start, settings: TrainSettings) -> Detector:
    """Returns the detector that a training with `settings` starts from, for 1000 proposals an image.

    Raises:
        CheckpointError: The packaged weights are damaged.
        ConfigError: They cannot work at the settings' size.
    """
    if start == "general":
        model, _ = load_model("general")
    else:
        # As a training draws its first weights.
        torch.manual_seed(settings.loop.seed)
        model = Rpn(settings.model).eval()
    content = Checkpoint(settings=settings, weights={}, step=0)
    return make_detector(model, content, num_proposals=_NUM_PROPOSALS, size_hw=None)


def evaluate_start(start: Start, settings: TrainSettings, data: Path) -> Evaluation:
    """Measures that detector on the validation images in the folder `data`; errors as there.

    Raises:
        DataError: The annotations or images cannot be used.
    """
    detect = partial(run_detector, start_detector(start, settings))
    return measure(detect, find_split(data, "val"), name=STARTS[start], num_proposals=_NUM_PROPOSALS)
