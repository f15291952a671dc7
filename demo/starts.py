"""The two starts of the demo's trainings, the packaged general weights and random ones, and their own recall."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from edgerpn.demo.charts import Points
from edgerpn.errors import ConfigError
from edgerpn.models import GENERAL
from edgerpn.train.checkpoint import Checkpoint
from edgerpn.train.config import TrainSettings
from edgerpn.train.data.splits import find_split
from edgerpn.train.evaluation import make_detector
from edgerpn.train.network.detector import Detector
from edgerpn.train.network.detector import detect as run_detector
from edgerpn.train.network.model import Rpn
from edgerpn.train.recall.measurement import Evaluation, measure
from edgerpn.train.run.loop import TrainResult
from edgerpn.train.run.start import RANDOM, choose_start
from edgerpn.train.training import resolve_settings

STARTS = {GENERAL: "general weights", RANDOM: "random weights"}
"""The starts in the order of their trainings, as `loop.start` has them, and their names for people."""

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


def settings_by_start(settings: TrainSettings) -> dict[str, TrainSettings]:
    """Returns the settings of the two trainings, which differ in `loop.start` only.

    Raises:
        ConfigError: The general weights do not fit the network.
    """
    found = {start: resolve_settings(base=settings, start=start) for start in STARTS}
    try:
        choose_start(found[GENERAL], backbone_weights=None)
    except ConfigError as error:
        raise ConfigError(
            [
                "--set model: the demo fine-tunes the general weights, which are for the network of the preset edge; "
                "leave this setting out, and train other networks with edgerpn train"
            ]
        ) from error
    return found


def start_detector(settings: TrainSettings) -> Detector:
    """Returns the detector that a training with `settings` starts from, for 1000 proposals an image.

    Raises:
        CheckpointError: The weights to start from cannot be read.
        ConfigError: They do not fit the network.
    """
    # The steps of a training: the seed fixes whatever weights stay random.
    torch.manual_seed(settings.loop.seed)
    model = Rpn(settings.model).eval()
    choose_start(settings, backbone_weights=None).apply(model, settings, lambda _: None)
    content = Checkpoint(settings=settings, weights={}, step=0)
    return make_detector(model, content, num_proposals=_NUM_PROPOSALS, size_hw=None)


def evaluate_start(settings: TrainSettings, data: Path) -> Evaluation:
    """Measures that detector on the validation images in the folder `data`; errors as there.

    Raises:
        DataError: The annotations or images cannot be used.
    """
    detect = partial(run_detector, start_detector(settings))
    return measure(detect, find_split(data, "val"), name=STARTS[settings.loop.start], num_proposals=_NUM_PROPOSALS)
