"""Accepts a lower precision by recall; the blocks that cost most recall stay in a higher precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

from edgerpn.errors import RecallDropError
from edgerpn.export.evaluate import RecallMeter
from edgerpn.export.export_config import ExportConfig
from edgerpn.export.precision.blocks import NetworkNodes, ancestors
from edgerpn.export.precision.calibration import CalibratedRanges
from edgerpn.export.precision.half import emulate_half, to_half
from edgerpn.export.precision.quantize import convolutions, quantize
from edgerpn.manifest.parts import Precision
from edgerpn.progress import track

SENSITIVITY_IMAGES = 100
"""Images on which the cost of single blocks is measured at most: there are many blocks."""

Logits = Callable[[onnx.ModelProto], Sequence[npt.NDArray[np.float32]]]
"""Graph to the logits of some images."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PrecisionVariants:
    """The variants of one graph in a lower precision: all of the network, or some of its blocks."""

    proto: onnx.ModelProto
    """The float32 graph."""
    network: NetworkNodes
    """Its network."""
    config: ExportConfig
    """Precision (fp16 or int8) and target."""
    ranges: CalibratedRanges | None = None
    """int8: ranges of `edgerpn.export.precision.quantize.tensors_to_calibrate`."""

    @property
    def blocks(self) -> tuple[str, ...]:
        """Blocks that the precision changes, in the order of the graph."""
        if self.config.precision == "fp16":
            return self.network.blocks
        nodes = convolutions(self.proto, self.network)
        return tuple(dict.fromkeys(self.network.block_of[node.name] for node in nodes))

    @property
    def kept_precision(self) -> Precision:
        """The next higher precision, in which blocks that are not reduced stay."""
        return "fp16" if self.config.precision == "int8" and self.config.target != "onnxruntime" else "fp32"

    def build(self, kept: Collection[str] = ()) -> onnx.ModelProto:
        """Returns the graph with the blocks `kept` in the next higher precision.

        Raises:
            ExportError: The network cannot be converted.
        """
        if kept and set(kept) >= set(self.blocks):
            return self.proto if self.kept_precision == "fp32" else to_half(self.proto, self.network.nodes())
        if self.ranges is None:
            return to_half(self.proto, self.network.nodes(without=kept))
        return quantize(self.proto, self.network, self.ranges, target=self.config.target, without=kept)

    def build_one(self, block: str) -> onnx.ModelProto:
        """Returns the graph with `block` alone reduced."""
        return self.build([other for other in self.blocks if other != block])

    def measurable(self, variant: onnx.ModelProto) -> onnx.ModelProto:
        """Returns a graph that computes in ONNX Runtime on the CPU the numbers of `variant` on a GPU."""
        ends = (*self.network.logits, *self.network.deltas)
        used = {name for node in ancestors(variant, ends) for name in node.input}
        kinds = {tensor.data_type for tensor in variant.graph.initializer if tensor.name in used}
        return emulate_half(variant, ends) if onnx.TensorProto.FLOAT16 in kinds else variant


class BlockCost(NamedTuple):
    """Recall that the reduction of one block alone costs."""

    block: str
    """Its name."""
    ar_drop: float
    """Points of AR@100 lost; negative: gained."""
    logits_error: float
    """Mean absolute difference of the logits of all anchors; it orders blocks that cost the same recall."""


class RecallGate:
    """Chooses the variant that is within the budget."""

    def __init__(
        self,
        variants: PrecisionVariants,
        meter: RecallMeter,
        *,
        budget: float,
        logits: Logits,
        log: Callable[[str], None],
    ) -> None:
        """Stores the arguments; `budget` is in points of AR@100, the others are those of `reduce_precision`."""
        self.variants, self.meter, self.budget, self.logits, self.log = variants, meter, budget, logits, log
        self.name: Precision = variants.config.precision
        self.ar100: dict[Precision, float] = {}
        """AR@100 by precision, 0..1."""
        self.kept: list[str] = []
        """Blocks that stayed in the next higher precision, worst first."""

    def run(self) -> onnx.ModelProto:
        """Returns the accepted graph.

        Raises:
            RecallDropError: Every variant loses more than the budget.
        """
        self._warn_of_few_objects()
        self.ar100["fp32"] = self.meter(self.variants.proto)
        above = self.variants.kept_precision
        is_above_good = above == "fp32" or self._measure(self.variants.build(self.variants.blocks), above)
        result = self.variants.build()
        if self._measure(result, self.name):
            return result
        costs = self.costs()
        self.log(f"each block alone in {self.name}, the others in {above}:")
        for line in format_costs(costs):
            self.log(line)
        # With all blocks kept nothing would be reduced; and the higher precision must hold the budget first.
        for cost in costs[:-1] if self.variants.config.fallback and is_above_good else ():
            self.kept.append(cost.block)
            result = self.variants.build(self.kept)
            if self._measure(result, self.name, f" with {', '.join(self.kept)} in {above}"):
                return result
        raise self._error(costs)

    def costs(self) -> list[BlockCost]:
        """Measures the cost of each block alone, against the next higher precision, worst first."""
        reference = self.variants.measurable(self.variants.build(self.variants.blocks))
        expected, before = self.logits(reference), self.meter(reference, limit=SENSITIVITY_IMAGES)
        costs = []
        for block in track(self.variants.blocks, "blocks", unit="block"):
            graph = self.variants.measurable(self.variants.build_one(block))
            after, found = self.meter(graph, limit=SENSITIVITY_IMAGES), self.logits(graph)
            differences = [float(np.abs(a - b).mean()) for a, b in zip(expected, found, strict=True)]
            costs.append(BlockCost(block, points(before - after), sum(differences) / max(1, len(differences))))
        return sorted(costs, key=lambda cost: (cost.ar_drop, cost.logits_error), reverse=True)

    def _warn_of_few_objects(self) -> None:
        worth = 100 / max(1, self.meter.num_objects)
        if worth > self.budget:
            self.log(
                f"warning: only {self.meter.num_objects} objects on {self.meter.num_images} validation images: one of "
                f"them is worth {worth:.2f} points of recall, more than the {self.budget:g} that may be lost"
            )

    def _measure(self, proto: onnx.ModelProto, name: Precision, what: str = "") -> bool:
        """Returns whether a graph is within the budget; stores and logs its recall."""
        self.ar100[name] = self.meter(self.variants.measurable(proto))
        lost = self._lost(name)
        self.log(
            f"{name}{what}: AR@100 {100 * self.ar100['fp32']:.2f} -> {100 * self.ar100[name]:.2f} on "
            f"{self.meter.num_images} images, {_change(lost)}, {self.budget:g} may be lost"
        )
        return lost <= self.budget

    def _lost(self, name: Precision) -> float:
        return points(self.ar100["fp32"] - self.ar100[name])

    def _error(self, costs: Sequence[BlockCost]) -> RecallDropError:
        above, lost = self.variants.kept_precision, self._lost(self.name)
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
        other = "entropy" if self.variants.config.calibration == "percentile" else "percentile"
        more = "calibrate on more photographs like those that the model will see"
        return [more, f"--set calibration={other}", "--precision fp16", allow]


def _change(lost: float) -> str:
    return f"{-lost:.2f} points gained" if round(lost, 2) < 0 else f"{abs(lost):.2f} points lost"


def points(difference: float) -> float:
    """Returns hundredths of recall, rounded so that budgets can be compared exactly."""
    return round(100 * difference, 6)


def format_costs(costs: Sequence[BlockCost]) -> list[str]:
    """Returns the costs as lines of a table, the header first."""
    width = max(5, *(len(cost.block) for cost in costs))
    rows = [f"  {cost.block:<{width}}  {cost.ar_drop:>7.2f}  {cost.logits_error:>10.5f}" for cost in costs]
    return [f"  {'block':<{width}}  {'AR lost':>7}  {'logits off':>10}", *rows]
