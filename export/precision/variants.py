"""The variants of one graph in a lower precision: all of the network, or some of its blocks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx

from edgerpn.export.export_config import ExportConfig
from edgerpn.export.precision.blocks import Network, ancestors
from edgerpn.export.precision.calibration import Ranges
from edgerpn.export.precision.half import emulate_half, to_half
from edgerpn.export.precision.quantize import convolutions, quantize
from edgerpn.manifest.parts import Precision


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reduction:
    """Makes the variants."""

    proto: onnx.ModelProto
    """The float32 graph."""
    network: Network
    """Its network."""
    config: ExportConfig
    """Precision (fp16 or int8) and target."""
    ranges: Ranges | None = None
    """int8: of the tensors that `edgerpn.export.precision.quantize.tensors_to_calibrate` names."""

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
        """The graph with the blocks `kept` in the next higher precision.

        Raises:
            ExportError: The network cannot be converted.
        """
        if kept and set(kept) >= set(self.blocks):
            return self.proto if self.kept_precision == "fp32" else to_half(self.proto, self.network.nodes())
        if self.ranges is None:
            return to_half(self.proto, self.network.nodes(without=kept))
        return quantize(self.proto, self.network, self.ranges, target=self.config.target, without=kept)

    def build_one(self, block: str) -> onnx.ModelProto:
        """The graph with `block` alone reduced."""
        return self.build([other for other in self.blocks if other != block])

    def measurable(self, variant: onnx.ModelProto) -> onnx.ModelProto:
        """The graph that gives on the CPU, in ONNX Runtime, what a variant gives where float16 is computed as such."""
        ends = (*self.network.logits, *self.network.deltas)
        used = {name for node in ancestors(variant, ends) for name in node.input}
        kinds = {tensor.data_type for tensor in variant.graph.initializer if tensor.name in used}
        return emulate_half(variant, ends) if onnx.TensorProto.FLOAT16 in kinds else variant
