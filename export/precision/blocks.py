"""The nodes of an exported graph that are the network, and the block that each of them belongs to.

The exporter keeps the module path of a weight (`model.backbone.stages.2.1.first.conv.weight`) as the name of its
tensor, but not that of a node. The block of a node follows from the weights that it reads; nodes without weights
(activations, sums, pools) belong to the block that feeds them last.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import takewhile

import onnx

from edgerpn.errors import ExportError

PARTS = ("model.backbone.", "model.neck.", "model.head.")
"""Module paths of the weights that make up the network; the path up to the first dot is the detector's."""

LOGITS_WEIGHT = "model.head.objectness.weight"
DELTAS_WEIGHT = "model.head.deltas.weight"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NetworkNodes:
    """Backbone, neck and head inside a graph: all nodes between the normalised image and logits and deltas."""

    block_of: Mapping[str, str]
    """Name of each node of the network, in the order of the graph, to the name of its block."""
    logits: tuple[str, ...]
    """Output tensors of the objectness convolution, one for each level."""
    deltas: tuple[str, ...]
    """Output tensors of the deltas convolution, one for each level."""

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks, in the order of the graph."""
        return tuple(dict.fromkeys(self.block_of.values()))

    def nodes(self, *, without: Collection[str] = ()) -> frozenset[str]:
        """Names of the nodes of all blocks but those in `without`."""
        return frozenset(node for node, block in self.block_of.items() if block not in without)


def find_network(proto: onnx.ModelProto) -> NetworkNodes:
    """Finds the network in a graph of `edgerpn.export.onnx.graph`.

    Raises:
        ExportError: The graph does not hold the weights of an RPN's head, or two nodes have the same name.
    """
    names = [node.name for node in proto.graph.node]
    if len(set(names)) != len(names) or "" in names:
        raise ExportError(
            "the graph has nodes without a name, or with the same name; export it again from its checkpoint"
        )
    behind = _behind_weights(proto)
    ends = {
        weight: tuple(node.output[0] for node in proto.graph.node if weight in node.input)
        for weight in (LOGITS_WEIGHT, DELTAS_WEIGHT)
    }
    if not all(ends.values()):
        missing = " and ".join(weight for weight, outputs in ends.items() if not outputs)
        raise ExportError(
            f"the graph has no convolution with the weights {missing}; expected an export of a checkpoint"
        )
    before = {node.name for node in ancestors(proto, [name for outputs in ends.values() for name in outputs])}
    block_of = {name: block for name, block in behind.items() if name in before}
    return NetworkNodes(block_of=block_of, logits=ends[LOGITS_WEIGHT], deltas=ends[DELTAS_WEIGHT])


def ancestors(proto: onnx.ModelProto, tensors: Collection[str]) -> list[onnx.NodeProto]:
    """Returns the nodes that compute `tensors`, directly or not, in the order of the graph."""
    wanted, found = set(tensors), []
    for node in reversed(proto.graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            found.append(node)
    return found[::-1]


def _behind_weights(proto: onnx.ModelProto) -> dict[str, str]:
    """Blocks by name of the nodes that use the network's weights or tensors computed with them."""
    weights = {tensor.name for tensor in proto.graph.initializer if tensor.name.startswith(PARTS)}
    blocks: dict[str, str] = {}
    source: dict[str, tuple[int, str]] = {}
    for position, node in enumerate(proto.graph.node):
        own = [block_name(name) for name in node.input if name in weights]
        fed = [source[name] for name in node.input if name in source]
        if not own and not fed:
            continue
        blocks[node.name] = own[0] if own else max(fed)[1]
        source.update((name, (position, blocks[node.name])) for name in node.output)
    return blocks


def block_name(weight: str) -> str:
    """Returns the name of the block that a weight belongs to.

    A block ends with the first run of numbers in the path, which is where modules repeat:
    `model.backbone.stages.2.1.first.conv.weight` is of `backbone.stages.2.1`, `model.neck.lateral.0.bias` of
    `neck.lateral.0`. A path without numbers names its module: `model.head.objectness.weight` is of
    `head.objectness`.
    """
    module = weight.split(".")[1:-1]
    first = next((i for i, part in enumerate(module) if part.isdigit()), None)
    if first is None:
        return ".".join(module[:-1] if len(module) > 2 else module)
    numbers = len(list(takewhile(str.isdigit, module[first:])))
    return ".".join(module[: first + numbers])
