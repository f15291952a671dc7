"""The weights that a new run starts from: random ones, those of the package, or a checkpoint's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edgerpn.errors import ConfigError
from edgerpn.models import GENERAL, GENERAL_WEIGHTS
from edgerpn.train.checkpoint import load_checkpoint
from edgerpn.train.config import TrainSettings
from edgerpn.train.network.model import Rpn

AUTO, RANDOM = "auto", "random"
_BACKBONE, _CLASSES = "backbone.", "region_head.logits."


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Start:
    """Chosen by the first process for all."""

    name: str
    """RANDOM, GENERAL, or the path of a checkpoint."""
    weights: dict[str, Tensor]
    """Tensors that fit the network, by the names of its state dict; empty for random weights."""
    lines: tuple[str, ...] = ()
    """For the log."""

    def apply(self, model: Rpn, settings: TrainSettings, log: Callable[[str], None]) -> TrainSettings:
        """Loads the weights; returns the settings with the name of the start, as the checkpoints of the run keep it."""
        model.load_state_dict(self.weights, strict=False)
        for line in self.lines:
            log(line)
        return dataclasses.replace(settings, loop=dataclasses.replace(settings.loop, start=self.name))


def choose_start(settings: TrainSettings, *, backbone_weights: Path | None) -> Start:
    """Reads the weights that `loop.start` names.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        ConfigError: Its backbone is another one, or `backbone_weights` are named too.
    """
    asked = settings.loop.start
    if asked == RANDOM or (asked == AUTO and backbone_weights is not None):
        return Start(name=RANDOM, weights={}, lines=("start: random weights",))
    if backbone_weights is not None:
        raise ConfigError(
            [f"--backbone-weights: for a start from random weights, got loop.start {asked!r} (--from) too; give one"]
        )
    name = GENERAL if asked == AUTO else asked
    # Never a file that is called `general` and happens to lie in the current folder.
    loaded = load_checkpoint(GENERAL_WEIGHTS if name == GENERAL else name)
    weights = loaded.weights
    if loaded.settings.model.classes != settings.model.classes:
        # The same number of classes does not make them the same.
        weights = {n: value for n, value in weights.items() if not n.startswith(_CLASSES)}
    own = _shapes(settings)
    misfit = next((_misfit(n, shape, weights) for n, shape in own.items() if not _fits(n, shape, weights)), None)
    if misfit is not None and not all(_fits(n, own[n], weights) for n in own if n.startswith(_BACKBONE)):
        if asked == AUTO:
            return Start(
                name=RANDOM, weights={}, lines=(f"start: random weights; the general ones do not fit: {misfit}",)
            )
        raise ConfigError(
            [
                f"loop.start (--from) {name}: made for another network: {misfit}; use the model settings that it was "
                "trained with, or --from random"
            ]
        )
    fitting = {n: weights[n] for n, shape in own.items() if _fits(n, shape, weights)}
    return Start(name=name, weights=fitting, lines=_describe(name, settings, [n for n in own if n not in fitting]))


def _shapes(settings: TrainSettings) -> dict[str, tuple[int, ...]]:
    # On the device without memory: draws no random numbers.
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in Rpn(settings.model).state_dict().items()}


def _fits(name: str, shape: tuple[int, ...], weights: dict[str, Tensor]) -> bool:
    return name in weights and tuple(weights[name].shape) == shape


def _misfit(name: str, shape: tuple[int, ...], weights: dict[str, Tensor]) -> str:
    if name not in weights:
        return f"they have no {name!r}"
    return f"{name!r} has shape {tuple(weights[name].shape)}, expected {shape}"


def _describe(name: str, settings: TrainSettings, missing: list[str]) -> tuple[str, ...]:
    what = "the general weights of this package" if name == GENERAL else name
    new = f"; random, as they do not fit: {', '.join(missing)}" if missing else ""
    lines = [f"start: {what}{new} (--from random starts without them)"]
    if settings.data.holdout_classes:
        lines.append(
            f"{', '.join(settings.data.holdout_classes)}: this run does not see their boxes, but the weights that it "
            "starts from may have seen such objects; recall on unseen classes needs --from random"
        )
    return tuple(lines)
