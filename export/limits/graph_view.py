"""An ONNX file as the rules of `edgerpn.export.limits` read it: nodes, constants, types, shapes, pyramid levels."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.reference import ReferenceEvaluator

from edgerpn import manifest as manifests
from edgerpn.errors import EngineLoadError
from edgerpn.manifest import DIGEST_KEY, METADATA_KEY, Manifest

Shape = tuple[int | None, ...]
"""Sizes of the axes; None where the size is open."""

_MAX_ELEMENTS = 4096
"""Larger constants are weights, whose values no rule asks for."""

_FOLDABLE = frozenset(
    {"Add", "Cast", "Concat", "Constant", "Div", "Gather", "Identity", "Max", "Min", "Mul", "Reshape", "Slice"}
    | {"Squeeze", "Sub", "Unsqueeze"}
)
"""Operators by which exporters compute a count out of constants and shapes."""


def read_onnx(path: Path) -> tuple[onnx.ModelProto, Manifest | None]:
    """Reads an ONNX file, and its manifest if it is one of ours.

    Args:
        path: The file; its manifest is beside it or inside.

    Raises:
        EngineLoadError: The file is missing or not ONNX: another format, empty, truncated or damaged.
        ManifestError: The manifest is malformed.
        ArtifactMismatchError: The file is not the one that the manifest beside it describes.
    """
    if not path.is_file():
        what = "this is a folder, expected an ONNX file" if path.is_dir() else "no such file"
        raise EngineLoadError(f"{path}: {what}")
    sidecar = manifests.manifest_path(path)
    # Before the file is parsed: of a damaged copy of ours, the hash says more than the parser.
    manifest = manifests.read(path) if manifests.is_manifest(sidecar) else None
    proto = _parse(path)
    properties = metadata(path, proto)
    text = properties.get(METADATA_KEY)
    if manifest is None and text is not None:
        # A file of ours with something else beside it: its manifest was damaged, and reading it says how.
        manifest = manifests.read(path) if sidecar.is_file() else manifests.parse(text, source=f"{path} (metadata)")
        manifests.check_seal(path, properties.get(DIGEST_KEY))
    return proto, manifest


def metadata(path: Path, proto: onnx.ModelProto) -> dict[str, str]:
    """The metadata of an ONNX file.

    Raises:
        EngineLoadError: They are not text.
    """
    try:
        return {entry.key: entry.value for entry in proto.metadata_props}
    except UnicodeDecodeError as error:
        raise EngineLoadError(f"{path}: damaged: its metadata are not text. Copy it again, or export again.") from error


def _parse(path: Path) -> onnx.ModelProto:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EngineLoadError(f"{path}: cannot be read: {error.strerror}") from error
    if path.suffix in (".engine", ".plan", ".pt", ".pth"):
        what = "a checkpoint" if path.suffix in (".pt", ".pth") else "an engine"
        raise EngineLoadError(f"{path}: this is {what}; expected the ONNX file of `edgerpn export`")
    if not data:
        raise EngineLoadError(f"{path}: the file is empty; copy or export it again")
    try:
        proto = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise EngineLoadError(
            f"{path}: cannot be read as ONNX: it is truncated, damaged, or of another format ({len(data)} bytes, "
            f"starting with {data[:8]!r}); copy or export it again"
        ) from error
    # Other formats can be valid protobuf by chance, with everything in fields that ONNX does not know.
    if not proto.ir_version or not proto.graph.node or not proto.opset_import:
        raise EngineLoadError(f"{path}: not an ONNX model: it has no graph; export it with edgerpn export")
    return proto


class GraphView:
    """A graph with everything that rules ask about; local functions are inlined, subgraphs are walked too."""

    def __init__(self, proto: onnx.ModelProto, manifest: Manifest | None) -> None:
        """Infers types and shapes; what cannot be inferred stays unknown."""
        self.manifest = manifest
        self.opsets = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
        inlined = onnx.inliner.inline_local_functions(proto) if proto.functions else proto
        self.proto = _inferred(inlined)
        self.nodes = tuple(_walk(self.proto.graph))
        self.producers = {name: node for node in self.nodes for name in node.output if name}
        self.dtypes: dict[str, int] = {}
        self.shapes: dict[str, Shape] = {}
        graph = self.proto.graph
        for value in (*graph.value_info, *graph.input, *graph.output):
            self._note(value)
        self.tensors = {tensor.name: tensor for tensor in graph.initializer} | _constant_tensors(self.nodes)
        for name, tensor in self.tensors.items():
            self.dtypes[name] = tensor.data_type
            self.shapes[name] = tuple(tensor.dims)
        self._level_sizes = level_anchors(manifest) if manifest is not None else ()
        self._levels = self._match_levels()

    def _note(self, value: onnx.ValueInfoProto) -> None:
        tensor = value.type.tensor_type
        if tensor.elem_type:
            self.dtypes[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            self.shapes[value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim
            )

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """The value of a tensor that is fixed in the file; None when it is computed from the input, or large."""
        return self._fold(name, depth=8)

    def _fold(self, name: str, depth: int) -> npt.NDArray[Any] | None:
        tensor = self.tensors.get(name)
        if tensor is not None:
            is_small = math.prod(tensor.dims) <= _MAX_ELEMENTS and not tensor.external_data
            return onnx.numpy_helper.to_array(tensor) if is_small else None
        node = self.producers.get(name)
        if node is None or not depth:
            return None
        if node.op_type == "Shape":
            shape = self.shapes.get(node.input[0])
            return np.array(shape, np.int64) if shape is not None and None not in shape and not node.attribute else None
        if node.op_type not in _FOLDABLE or node.domain not in ("", "ai.onnx"):
            return None
        values = {part: self._fold(part, depth - 1) for part in node.input if part}
        if any(value is None for value in values.values()):
            return None
        try:
            # Without names of outputs it returns them in order; its annotation also covers the case with names.
            found: Any = ReferenceEvaluator(node, opsets={"": self.opsets.get("ai.onnx", 1)}).run(None, values)
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError):
            # The node itself is wrong, which is not for this place to say.
            return None
        return np.asarray(found[0])

    def depends_on_data(self, name: str) -> bool:
        """Whether a tensor is computed from the values of the graph's input, and not from its shape alone."""
        return self._reaches_input(name, frozenset({value.name for value in self.proto.graph.input}))

    @functools.lru_cache(maxsize=256)  # noqa: B019 - a view lives as long as one check
    def _reaches_input(self, name: str, inputs: frozenset[str]) -> bool:
        if name in inputs:
            return name not in self.tensors
        node = self.producers.get(name)
        if node is None or node.op_type == "Shape":
            return False
        return any(self._reaches_input(part, inputs) for part in node.input if part)

    def level(self, node: onnx.NodeProto) -> int | None:
        """Number of the pyramid level, finest first from 0, that a TopK or a NonMaxSuppression works on.

        A TopK chooses from the anchors of a level; a NonMaxSuppression gets the boxes of the TopK before it. None for
        those that work on several levels, and for other nodes.
        """
        if node.op_type != "NonMaxSuppression":
            return self._levels.get(node.output[0])
        names, seen = [node.input[1]], set[str]()
        found: set[int | None] = set()
        while names:
            producer = self.producers.get(names.pop())
            if producer is None or producer.output[0] in seen:
                continue
            seen.add(producer.output[0])
            if producer.op_type == "TopK":
                found.add(self._levels.get(producer.output[0]))
            else:
                names.extend(producer.input)
        return found.pop() if len(found) == 1 else None

    def level_text(self, level: int | None) -> str:
        """What a level is, for messages; empty for None."""
        if level is None or self.manifest is None:
            return ""
        return f"{self._level_sizes[level]} anchors at stride {self.manifest.anchors.strides_px[level]}"

    def _match_levels(self) -> dict[str, int]:
        """Level of each TopK by the length of its axis; the same length on two levels goes by their order."""
        free = dict(enumerate(self._level_sizes))
        found: dict[str, int] = {}
        for node in self.nodes:
            if node.op_type != "TopK":
                continue
            size = self.axis_size(node)
            level = next((number for number, anchors in free.items() if anchors == size), None)
            if level is not None:
                found[node.output[0]] = level
                del free[level]
        return found

    def axis_size(self, node: onnx.NodeProto) -> int | None:
        """Length of the axis that a TopK chooses from, where known."""
        shape = self.shapes.get(node.input[0])
        axis = attribute(node, "axis", -1)
        return shape[axis] if shape and -len(shape) <= axis < len(shape) else None


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """An attribute's value, texts as str; `default` when the node does not have it."""
    for item in node.attribute:
        if item.name == name:
            value = onnx.helper.get_attribute_value(item)
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return default


def level_anchors(manifest: Manifest) -> tuple[int, ...]:
    """Number of anchors of each pyramid level, finest first: cells of the network's input times anchors of a cell."""
    height, width = manifest.input.network_hw
    anchors = manifest.anchors
    return tuple(
        math.ceil(height / stride) * math.ceil(width / stride) * len(sizes) * len(anchors.ratios_hw)
        for stride, sizes in zip(anchors.strides_px, anchors.sizes_px, strict=True)
    )


def _constant_tensors(nodes: Iterable[onnx.NodeProto]) -> dict[str, onnx.TensorProto]:
    """The tensors inside Constant nodes, by the name of the node's output."""
    return {
        node.output[0]: item.t
        for node in nodes
        if node.op_type == "Constant"
        for item in node.attribute
        if item.name == "value"
    }


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        # More than protobuf holds, or no shapes to be had: the rules go by what the file itself says.
        return proto


def _walk(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for item in node.attribute:
            for inner in (item.g, *item.graphs) if item.type in (item.GRAPH, item.GRAPHS) else ():
                yield from _walk(inner)
