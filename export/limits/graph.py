"""An ONNX file as the rules of `edgerpn.export.limits.rules` read it: nodes, constants, types and shapes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError

from edgerpn import manifest as manifests
from edgerpn.errors import EngineLoadError
from edgerpn.manifest import DIGEST_KEY, METADATA_KEY, Manifest
from edgerpn.models import CHECKPOINT_SUFFIXES

Shape = tuple[int | None, ...]
"""Sizes of the axes; None where the size is open."""

LIBRARY_FAILURES = (
    onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError, MemoryError
)  # fmt: skip
"""Errors of the package onnx about a graph that is not valid, or larger than protobuf or the memory holds."""


def read_onnx(path: Path) -> tuple[onnx.ModelProto, Manifest | None]:
    """Reads an ONNX file, and its manifest if it is one of ours.

    Args:
        path: The file; its manifest is beside it or inside.

    Raises:
        EngineLoadError: The file is missing or not ONNX: another format, empty, truncated or damaged.
        ManifestError: The manifest is malformed.
        ArtifactMismatchError: The file is damaged, or (ArtifactChangedError) was changed since export.
    """
    if not path.is_file():
        what = "this is a folder, expected an ONNX file" if path.is_dir() else "no such file"
        raise EngineLoadError(f"{path}: {what}")
    sidecar = manifests.manifest_path(path)
    # Before the file is parsed: the hash explains a damaged copy of ours better than the parser.
    manifest = manifests.read(path) if manifests.is_manifest(sidecar) else None
    proto = parse_onnx(path)
    properties = metadata(path, proto)
    text = properties.get(METADATA_KEY)
    if manifest is None and text is not None:
        # A file of ours with a damaged manifest beside it: reading that raises the error.
        manifest = manifests.read(path) if sidecar.is_file() else manifests.parse(text, source=f"{path} (metadata)")
        manifests.check_seal(path, properties.get(DIGEST_KEY))
    return proto, manifest


def metadata(path: Path, proto: onnx.ModelProto) -> dict[str, str]:
    """Returns the metadata of an ONNX file.

    Raises:
        EngineLoadError: They are not text.
    """
    try:
        return {entry.key: entry.value for entry in proto.metadata_props}
    except UnicodeDecodeError as error:
        raise EngineLoadError(f"{path}: damaged: its metadata are not text. Copy it again, or export again.") from error


def parse_onnx(path: Path) -> onnx.ModelProto:
    """Reads an ONNX file, whatever a manifest says.

    Raises:
        EngineLoadError: As for `read_onnx`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EngineLoadError(f"{path}: cannot be read: {error.strerror}") from error
    checkpoints = (*CHECKPOINT_SUFFIXES, ".pth")
    if path.suffix in (".engine", ".plan", *checkpoints):
        what = "a checkpoint" if path.suffix in checkpoints else "an engine"
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
    """A graph with everything that the rules read; local functions are inlined, subgraphs are walked too."""

    def __init__(self, proto: onnx.ModelProto, manifest: Manifest | None) -> None:
        """Infers types and shapes; those that cannot be inferred stay unknown."""
        self.manifest = manifest
        self.opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
        self.proto = _inferred(_inlined(proto) if proto.functions else proto)
        graph = self.proto.graph
        self.nodes = tuple(_walk(graph))
        self.dtypes: dict[str, int] = {}
        self.shapes: dict[str, Shape] = {}
        for value in (*graph.value_info, *graph.input, *graph.output):
            self._note(value)
        self.tensors = {tensor.name: tensor for tensor in graph.initializer} | _constant_tensors(self.nodes)
        for name, tensor in self.tensors.items():
            self.dtypes[name] = tensor.data_type
            self.shapes[name] = tuple(tensor.dims)

    def _note(self, value: onnx.ValueInfoProto) -> None:
        tensor = value.type.tensor_type
        if tensor.elem_type:
            self.dtypes[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            self.shapes[value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim
            )

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """Returns the value of a tensor in the file; None for one that the graph computes."""
        tensor = self.tensors.get(name)
        return None if tensor is None or tensor.external_data else onnx.numpy_helper.to_array(tensor)

    def axis_size(self, node: onnx.NodeProto) -> int | None:
        """Length of the axis that a TopK chooses from, where known."""
        shape = self.shapes.get(node.input[0])
        axis = attribute(node, "axis", -1)
        return shape[axis] if shape and -len(shape) <= axis < len(shape) else None


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Returns an attribute's value, texts as str; `default` when the node does not have it."""
    for item in node.attribute:
        if item.name == name:
            value = onnx.helper.get_attribute_value(item)
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return default


def dtype_name(dtype: int) -> str:
    """Returns float32 for ONNX's FLOAT; `type 99` for a number that ONNX does not have."""
    if dtype not in onnx.TensorProto.DataType.values():
        return f"type {dtype}"
    name: str = onnx.TensorProto.DataType.Name(dtype)
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())


def _constant_tensors(nodes: tuple[onnx.NodeProto, ...]) -> dict[str, onnx.TensorProto]:
    """Returns the tensors inside Constant nodes, by the name of the node's output."""
    found = {}
    for node in nodes:
        for item in node.attribute if node.op_type == "Constant" and node.output else ():
            if item.name == "value":
                found[node.output[0]] = item.t
            elif item.name in ("value_int", "value_ints"):
                value = np.array(onnx.helper.get_attribute_value(item), np.int64)
                found[node.output[0]] = onnx.numpy_helper.from_array(value)
    return found


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.inliner.inline_local_functions(proto)
    except LIBRARY_FAILURES:
        # Functions that call themselves, or with other numbers of inputs: the checker and the library report them.
        return proto


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(proto)
    except LIBRARY_FAILURES:
        # More than protobuf holds, or wrong shapes: the rules then use the values in the file.
        return proto


def _walk(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the graphs inside its nodes."""
    for node in graph.node:
        yield node
        for item in node.attribute:
            for inner in (item.g, *item.graphs) if item.type in (item.GRAPH, item.GRAPHS) else ():
                yield from _walk(inner)
