"""Accepts a lower precision by recall: measures it, finds what costs most, and leaves that in a higher precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import onnx

from edgerpn.errors import RecallDropError
from edgerpn.export.precision.variants import Reduction
from edgerpn.manifest.parts import Precision
from edgerpn.progress import track

SENSITIVITY_IMAGES = 100
"""Images on which the cost of single blocks is measured at most: there are many blocks."""

Logits = Callable[[onnx.ModelProto], Sequence[npt.NDArray[np.float32]]]
"""Graph to the logits of some images."""


class Meter(Protocol):
    """Measures recall, see `edgerpn.export.precision.meter`."""

    num_images: int
    """Images measured."""
    num_objects: int
    """Objects on them."""

    def __call__(self, proto: onnx.ModelProto, *, limit: int | None = None) -> float:
        """AR@100 of a graph, 0..1, on the first `limit` of the images."""
        ...


class BlockCost(NamedTuple):
    """What it costs to reduce one block alone."""

    block: str
    """Its name."""
    ar_drop: float
    """Points of AR@100 lost; below zero: won."""
    logits_error: float
    """Mean absolute difference of the logits of all anchors; it orders blocks that cost the same recall."""


class RecallGate:
    """The way from a reduction to a graph within the budget."""

    def __init__(
        self, reduction: Reduction, meter: Meter, *, budget: float, logits: Logits, say: Callable[[str], None]
    ) -> None:
        """Prepares; `budget` is in points of AR@100, the rest as in `reduce_precision`."""
        self.reduction, self.meter, self.budget, self.logits, self.say = reduction, meter, budget, logits, say
        self.name: Precision = reduction.config.precision
        self.ar100: dict[Precision, float] = {}
        """AR@100 by precision, 0..1."""
        self.kept: list[str] = []
        """Blocks that stayed in the next higher precision, worst first."""

    def run(self) -> onnx.ModelProto:
        """The accepted graph.

        Raises:
            RecallDropError: There is none.
        """
        self._warn_of_few_objects()
        self.ar100["fp32"] = self.meter(self.reduction.proto)
        above = self.reduction.kept_precision
        is_above_good = above == "fp32" or self._measure(self.reduction.build(self.reduction.blocks), above)
        result = self.reduction.build()
        if self._measure(result, self.name):
            return result
        costs = self.costs()
        self.say(f"each block alone in {self.name}, the others in {above}:")
        for line in format_costs(costs):
            self.say(line)
        # With all blocks kept nothing would be reduced; and what is above must hold the budget first.
        for cost in costs[:-1] if self.reduction.config.fallback and is_above_good else ():
            self.kept.append(cost.block)
            result = self.reduction.build(self.kept)
            if self._measure(result, self.name, f" with {', '.join(self.kept)} in {above}"):
                return result
        raise self._error(costs)

    def costs(self) -> list[BlockCost]:
        """What each block costs alone, against the next higher precision, worst first."""
        reference = self.reduction.measurable(self.reduction.build(self.reduction.blocks))
        expected, before = self.logits(reference), self.meter(reference, limit=SENSITIVITY_IMAGES)
        costs = []
        for block in track(self.reduction.blocks, "blocks", unit="block"):
            graph = self.reduction.measurable(self.reduction.build_one(block))
            after, found = self.meter(graph, limit=SENSITIVITY_IMAGES), self.logits(graph)
            differences = [float(np.abs(a - b).mean()) for a, b in zip(expected, found, strict=True)]
            costs.append(BlockCost(block, points(before - after), sum(differences) / max(1, len(differences))))
        return sorted(costs, key=lambda cost: (cost.ar_drop, cost.logits_error), reverse=True)

    def _warn_of_few_objects(self) -> None:
        worth = 100 / max(1, self.meter.num_objects)
        if worth > self.budget:
            self.say(
                f"warning: only {self.meter.num_objects} objects on {self.meter.num_images} validation images: one of "
                f"them is worth {worth:.2f} points of recall, more than the {self.budget:g} that may be lost"
            )

    def _measure(self, proto: onnx.ModelProto, name: Precision, what: str = "") -> bool:
        """Whether a graph is within the budget; remembers and says its recall."""
        self.ar100[name] = self.meter(self.reduction.measurable(proto))
        lost = self._lost(name)
        self.say(
            f"{name}{what}: AR@100 {100 * self.ar100['fp32']:.2f} -> {100 * self.ar100[name]:.2f} on "
            f"{self.meter.num_images} images, {_change(lost)}, {self.budget:g} may be lost"
        )
        return lost <= self.budget

    def _lost(self, name: Precision) -> float:
        return points(self.ar100["fp32"] - self.ar100[name])

    def _error(self, costs: Sequence[BlockCost]) -> RecallDropError:
        above, lost = self.reduction.kept_precision, self._lost(self.name)
        figures = ", ".join(f"{name} {100 * value:.2f}" for name, value in self.ar100.items())
        worst = ", ".join(f"{cost.block} ({cost.ar_drop:.2f})" for cost in costs[:3])
        if self.kept:
            tried = f"With {len(self.kept)} of {len(costs)} blocks in {above} it is still too much."
        elif above != "fp32" and self._lost(above) > self.budget:
            tried = f"{above} alone loses {self._lost(above):.2f}, so leaving blocks in it cannot help."
        else:
            tried = f"No block was left in {above} (fallback is off)." if len(costs) > 1 else "There is no other block."
        return RecallDropError(
            f"{self.name} loses {lost:.2f} points of AR@100 on {self.meter.num_images} images ({figures}), "
            f"{self.budget:g} are allowed. Blocks that cost most alone: {worst}. {tried} What can help: "
            f"{'; '.join(self._advice(lost))}."
        )

    def _advice(self, lost: float) -> list[str]:
        allow = f"allow more with --max-ar-drop {math.ceil(10 * lost) / 10:g}"
        if self.name != "int8":
            return ["--precision fp32", allow]
        other = "entropy" if self.reduction.config.calibration == "percentile" else "percentile"
        more = "calibrate on more photographs like those that the model will see"
        return [more, f"--set calibration={other}", "--precision fp16", allow]


def _change(lost: float) -> str:
    return f"{-lost:.2f} points won" if round(lost, 2) < 0 else f"{abs(lost):.2f} points lost"


def points(difference: float) -> float:
    """Hundredths of recall, free of the noise of the last bits, so that budgets can be compared exactly."""
    return round(100 * difference, 6)


def format_costs(costs: Sequence[BlockCost]) -> list[str]:
    """A table, its header first."""
    width = max(5, *(len(cost.block) for cost in costs))
    rows = [f"  {cost.block:<{width}}  {cost.ar_drop:>7.2f}  {cost.logits_error:>10.5f}" for cost in costs]
    return [f"  {'block':<{width}}  {'AR lost':>7}  {'logits off':>10}", *rows]
