"""What each target cannot do is found in the graph, with level, limit and fix; and TensorRT-RTX says the same."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgerpn import manifest as manifests
from edgerpn.errors import ArtifactMismatchError, EngineLoadError, ExportError, ManifestError, ManifestVersionError
from edgerpn.export.limits import TARGETS, Target, Violation, find_violations, oldest_target, refuse_violations
from edgerpn.export.limits_graph import GraphView, level_anchors, read_onnx

GetExport = Callable[[str], Any]
F, H, D = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE
U8, I64, B = TensorProto.UINT8, TensorProto.INT64, TensorProto.BOOL
RTX: Target = "tensorrt-rtx"
JETPACK: Target = "tensorrt-10.3"


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any]]],
    *,
    opset: int = 19,
    domains: Sequence[str] = (),
    **initializers: Any,
) -> onnx.ModelProto:
    """A small model."""
    values = [
        [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()]
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    built = helper.make_graph(list(nodes), "graph", *values, tensors)
    return helper.make_model(built, opset_imports=imports, ir_version=10)


N = helper.make_node
IMAGE = {"x": (F, [1, 3, 8, 8])}
SAME = {"y": (F, [1, 3, 8, 8])}


def topk(k: int, size: int = 5000) -> onnx.ModelProto:
    return graph([N("TopK", ["x", "k"], ["y", "i"])], {"x": (F, [1, size])}, {"y": (F, [1, k])}, k=np.array([k]))


def resize(**attributes: Any) -> onnx.ModelProto:
    node = N("Resize", ["x", "", "s"], ["y"], **{"mode": "linear", **attributes})
    return graph([node], IMAGE, {"y": (F, [1, 3, 16, 16])}, s=np.array([1, 1, 2, 2], np.float32))


def quantize(zero_point: Any, *, dtype: Any = np.float32, opset: int = 19) -> onnx.ModelProto:
    names = ["s", "z"] if zero_point is not None else ["s"]
    nodes = [
        N("Cast", ["x"], ["c"], to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))),
        N("QuantizeLinear", ["c", *names], ["q"]),
        N("DequantizeLinear", ["q", *names], ["d"]),
        N("Cast", ["d"], ["y"], to=F),
    ]
    more = {} if zero_point is None else {"z": zero_point}
    return graph(nodes, IMAGE, SAME, opset=opset, s=dtype(0.1), **more)


def scatter(op: str, reduction: str) -> onnx.ModelProto:
    index, update = np.array([[0, 0]]), np.ones((1, 8, 8), np.float32)
    more: dict[str, Any] = {}
    if op == "ScatterElements":
        index, update, more = np.zeros((1, 1, 8, 8), np.int64), update[None], {"axis": 1}
    return graph([N(op, ["x", "i", "u"], ["y"], reduction=reduction, **more)], IMAGE, SAME, i=index, u=update)


def nms() -> onnx.ModelProto:
    node = N("NonMaxSuppression", ["b", "s", "m", "t"], ["y"])
    inputs = {"b": (F, [1, 50, 4]), "s": (F, [1, 1, 50])}
    return graph([node], inputs, {"y": (I64, [None, 3])}, m=np.array([10]), t=np.array([0.5], np.float32))


def conditional() -> onnx.ModelProto:
    branches = {
        name: helper.make_graph([N(op, ["x"], [out])], name, [], [helper.make_tensor_value_info(out, F, [1, 3, 8, 8])])
        for name, op, out in (("then_branch", "Relu", "t"), ("else_branch", "Neg", "e"))
    }
    nodes = [
        N("ReduceMax", ["x"], ["m"], keepdims=0),
        N("Greater", ["m", "z"], ["c"]),
        N("If", ["c"], ["y"], **branches),
    ]
    return graph(nodes, IMAGE, SAME, z=np.float32(0))


def uint8_first(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    return graph(nodes, {"u": (U8, [1, 8, 8, 3])}, {"y": (F, [1, None, None, None])})


# Name: graph, rule, severities for tensorrt-10.3, tensorrt-11, tensorrt-rtx and onnxruntime ("": not said).
GRAPHS: dict[str, tuple[Callable[[], onnx.ModelProto], str, str]] = {
    "topk at the limit": (lambda: topk(3840), "topk-limit", "----"),
    "topk above the limit": (lambda: topk(3841), "topk-limit", "eee-"),
    "topk above its axis": (lambda: topk(101, 100), "topk-axis", "eeee"),
    "topk of the input's values": (
        lambda: graph(
            [N("TopK", ["x", "k"], ["y", "i"])], {"x": (F, [1, 99]), "k": (I64, [1])}, {"y": (F, [1, None])}
        ),
        "topk-constant", "eee-",
    ),
    "topk of an open shape": (
        lambda: graph(
            [N("Shape", ["v"], ["s"], start=0, end=1), N("TopK", ["x", "s"], ["y", "i"])],
            {"v": (F, ["n", 4]), "x": (F, [1, 99])}, {"y": (F, [1, None])},
        ),
        "topk-constant", "www-",
    ),
    "linear resize": (resize, "resize", "----"),
    "cubic resize": (lambda: resize(mode="cubic"), "resize", "ww--"),
    "antialiased resize": (lambda: resize(antialias=1), "resize", "eee-"),
    "resize with symmetric half pixels": (
        lambda: resize(coordinate_transformation_mode="half_pixel_symmetric"), "resize", "eee-",
    ),
    "uint8 cast first": (
        lambda: uint8_first(N("Cast", ["u"], ["c"], to=F), N("Transpose", ["c"], ["y"])), "uint8-cast", "----",
    ),
    "uint8 transposed first": (
        lambda: uint8_first(N("Transpose", ["u"], ["c"]), N("Cast", ["c"], ["y"], to=F)), "uint8-cast", "eee-",
    ),
    "uint8 inside": (
        lambda: graph([N("Cast", ["x"], ["u"], to=U8), N("Cast", ["u"], ["y"], to=F)], IMAGE, SAME),
        "uint8-cast", "eee-",
    ),
    "nms": (nms, "varying-shape", "wwe-"),
    "nonzero": (
        lambda: graph([N("NonZero", ["x"], ["y"])], IMAGE, {"y": (I64, [4, None])}), "varying-shape", "wwe-",
    ),
    "if": (conditional, "control-flow", "www-"),
    "unique": (lambda: graph([N("Unique", ["x"], ["y"])], IMAGE, {"y": (F, [None])}), "unknown-operator", "eee-"),
    "a plugin": (
        lambda: graph([N("Magic", ["x"], ["y"], domain="acme")], IMAGE, SAME, domains=["acme"]),
        "unknown-operator", "eee-",
    ),
    "scatternd": (lambda: scatter("ScatterND", "none"), "scatter-reduction", "----"),
    "scatternd that adds": (lambda: scatter("ScatterND", "add"), "scatter-reduction", "eee-"),
    "scatterelements that takes the maximum": (
        lambda: scatter("ScatterElements", "max"), "scatter-reduction", "wwe-",
    ),
    "int8": (lambda: quantize(np.int8(0)), "quantize", "----"),
    "zero point": (lambda: quantize(np.int8(3)), "quantize", "eee-"),
    "unsigned with a zero point": (lambda: quantize(np.uint8(128)), "quantize", "eee-"),
    "unsigned": (lambda: quantize(np.uint8(0)), "quantize", "eee-"),
    "unsigned by default": (lambda: quantize(None), "quantize", "eee-"),
    "quantized float16": (lambda: quantize(np.int8(0), dtype=np.float16), "quantize-float16", "----"),
    "quantized float16 at opset 18": (
        lambda: quantize(np.int8(0), dtype=np.float16, opset=18), "quantize-float16", "eeee",
    ),
    "float64": (
        lambda: graph(
            [N("Cast", ["x"], ["d"], to=D), N("Add", ["d", "c"], ["e"]), N("Cast", ["e"], ["y"], to=F)],
            IMAGE, SAME, c=np.float64(1.5),
        ),
        "float64", "www-",
    ),
    "mixed floats": (
        lambda: graph([N("Add", ["x", "c"], ["y"])], IMAGE, SAME, c=np.float16(1.5)), "mixed-types", "eeee",
    ),
    "open height and width": (
        lambda: graph([N("Relu", ["x"], ["y"])], {"x": (F, [1, 3, "h", "w"])}, {"y": (F, [1, 3, "h", "w"])}),
        "dynamic-shape", "www-",
    ),
    "an open batch": (
        lambda: graph([N("Relu", ["x"], ["y"])], {"x": (F, ["N", 3, 8, 8])}, {"y": (F, ["N", 3, 8, 8])}),
        "dynamic-shape", "----",
    ),
    "opset 20": (lambda: graph([N("Relu", ["x"], ["y"])], IMAGE, SAME, opset=20), "opset", "----"),
    "opset 21": (lambda: graph([N("Relu", ["x"], ["y"])], IMAGE, SAME, opset=21), "opset", "e---"),
    "opset 25": (lambda: graph([N("Relu", ["x"], ["y"])], IMAGE, SAME, opset=25), "opset", "ew--"),
    "opset 26": (lambda: graph([N("Relu", ["x"], ["y"])], IMAGE, SAME, opset=26), "opset", "eew-"),
    "opset 6": (lambda: graph([N("Relu", ["x"], ["y"])], IMAGE, SAME, opset=6), "opset", "eeee"),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_each_target_says_what_it_cannot_do(name: str) -> None:
    make, rule, expected = GRAPHS[name]
    proto = make()
    said = ""
    for target in TARGETS:
        found = [violation for violation in find_violations(proto, target) if violation.rule == rule]
        assert len({(violation.node, violation.found) for violation in found}) == len(found)
        severities = {violation.severity[0] for violation in found}
        assert len(severities) <= 1
        said += "".join(severities) or "-"
    assert said == expected


def compiles(proto: onnx.ModelProto) -> bool:
    """Whether TensorRT-RTX parses and builds a graph."""
    trt = importlib.import_module("tensorrt_rtx")
    builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse(proto.SerializeToString()):
        return False
    return builder.build_serialized_network(network, builder.create_builder_config()) is not None


# The compiler takes these, but what it makes of them is not what the file says: see the rules' docstrings.
COMPILED_ALL_THE_SAME = {"unsigned", "unsigned by default", "quantized float16 at opset 18", "opset 6"}
OPEN_SHAPES = {"topk of an open shape", "open height and width", "an open batch"}


@pytest.mark.rtx
@pytest.mark.parametrize("name", [name for name in GRAPHS if name not in OPEN_SHAPES | COMPILED_ALL_THE_SAME])
def test_tensorrt_rtx_refuses_what_the_rules_call_an_error(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    proto = GRAPHS[name][0]()
    errors = [violation for violation in find_violations(proto, RTX) if violation.severity == "error"]
    assert compiles(proto) == (not errors)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["portable", "portable-source", "single-level", "peaks-portable"])
def test_an_export_with_portable_nms_has_nothing_that_any_target_cannot_do(
    name: str, target: Target, exported: GetExport
) -> None:
    assert find_violations(exported(name).file, target) == ()


def test_the_standard_nms_is_named_level_by_level(exported: GetExport) -> None:
    file = exported("standard").file
    found = find_violations(file, RTX)
    assert [(v.severity, v.rule, v.level) for v in found] == [("error", "varying-shape", level) for level in range(3)]
    assert all("--nms portable" in violation.fix for violation in found)
    assert {violation.severity for violation in find_violations(file, JETPACK)} == {"warning"}
    assert find_violations(file, "onnxruntime") == ()


def test_counts_above_a_level_or_the_limit_are_named_with_the_level(exported: GetExport) -> None:
    proto, manifest = read_onnx(exported("portable").file)
    assert manifest is not None
    # 128x192 pixels at strides 8, 16 and 32, one anchor in each cell.
    assert level_anchors(manifest) == (384, 96, 24)
    view = GraphView(proto, manifest)
    nodes = [node for node in view.nodes if node.op_type == "TopK"]
    assert [view.level(node) for node in nodes] == [0, 1, 2, None]
    assert [view.constant(node.input[1]).item() for node in nodes] == [100, 96, 24, 50]  # type: ignore[union-attr]
    for node, k in zip(nodes, (100, 97, 4000, 50), strict=True):
        proto.graph.initializer.append(numpy_helper.from_array(np.array([k]), f"k_of_{node.output[0]}"))
        real = next(other for other in proto.graph.node if other.output[0] == node.output[0])
        real.input[1] = f"k_of_{node.output[0]}"
    found = [(v.rule, v.level, v.found) for v in find_violations(proto, JETPACK, manifest) if v.rule[:4] == "topk"]
    assert found == [
        ("topk-axis", 1, "K = 97 of 96 anchors at stride 16"),
        ("topk-limit", 2, "K = 4000 of 24 anchors at stride 32"),
        ("topk-axis", 2, "K = 4000 of 24 anchors at stride 32"),
    ]
    with pytest.raises(ExportError, match=r"(?s)^here: 3 things .*tensorrt-10\.3.*level 1: K = 97 of 96 anchors.*fix:"):
        refuse_violations(proto, JETPACK, manifest, where="here")


def test_warnings_do_not_stop_an_export(exported: GetExport) -> None:
    proto, manifest = read_onnx(exported("standard").file)
    kept = refuse_violations(proto, oldest_target("tensorrt"), manifest, where="here")
    assert [violation.severity for violation in kept] == ["warning"] * 3
    assert [oldest_target(name) for name in ("tensorrt-rtx", "onnxruntime")] == ["tensorrt-rtx", "onnxruntime"]


def test_constants_are_found_in_nodes_and_behind_arithmetic() -> None:
    nodes = [
        N("Constant", [], ["a"], value=numpy_helper.from_array(np.array([70000]))),
        N("Constant", [], ["b"], value_ints=[2000]),
        N("Min", ["a", "b"], ["m"]),
        N("Shape", ["x"], ["s"], start=1, end=2),
        N("Cast", ["m"], ["c"], to=I64),
        N("TopK", ["x", "c"], ["y", "i"]),
    ]
    view = GraphView(graph(nodes, {"x": (F, [1, 1500])}, {"y": (F, [1, None])}), None)
    assert view.constant("c") == [2000]
    assert view.constant("x") is None
    (found,) = find_violations(view.proto, JETPACK)
    assert (found.rule, found.found, found.level) == ("topk-axis", "K = 2000 of 1500 elements", None)


def test_operators_inside_subgraphs_and_functions_are_seen() -> None:
    body = helper.make_function(
        "ours", "Both", ["x"], ["y"], [N("NonZero", ["x"], ["n"]), N("Cast", ["n"], ["y"], to=F)],
        [helper.make_opsetid("", 19)],
    )  # fmt: skip
    proto = graph([N("Both", ["x"], ["y"], domain="ours")], IMAGE, {"y": (F, [None, None])}, domains=["ours"])
    proto.functions.append(body)
    assert [violation.rule for violation in find_violations(proto, RTX)] == ["varying-shape"]


def test_a_graph_that_is_not_its_manifests_is_named(exported: GetExport) -> None:
    proto, manifest = read_onnx(exported("portable").file)
    assert manifest is not None
    proto.graph.output[1].type.tensor_type.shape.dim[1].dim_value = 51
    del proto.graph.output[2]
    found = {v.node: (v.found, v.limit) for v in find_violations(proto, RTX, manifest) if v.rule == "interface"}
    assert found == {
        "tensor count": ("no such tensor", "int32 [1], by the manifest"),
        "tensor scores": ("float32 [1, 51]", "float32 [1, 50], by the manifest"),
    }


def test_onnxruntime_is_asked_itself() -> None:
    plugin = GRAPHS["a plugin"][0]()
    (found,) = find_violations(plugin, "onnxruntime")
    assert (found.severity, found.rule) == ("error", "load")
    assert "Magic" in found.found
    newest = graph([N("Relu", ["x"], ["y"])], IMAGE, SAME, opset=200)
    assert [v.rule for v in find_violations(newest, "onnxruntime")] in (["load"], ["invalid"])


def test_a_file_that_breaks_onnxs_own_rules_is_an_error() -> None:
    proto = graph([N("Relu", ["nowhere"], ["y"])], IMAGE, SAME)
    (found,) = find_violations(proto, RTX)
    assert (found.severity, found.rule) == ("error", "invalid")
    assert "nowhere" in found.found


def test_errors_come_before_warnings_and_read_well() -> None:
    both = graph([*nms().graph.node, N("Unique", ["b"], ["v"])], {"b": (F, [1, 5, 4]), "s": (F, [1, 1, 5])},
                 {"v": (F, [None])}, m=np.array([10]), t=np.array([0.5], np.float32))  # fmt: skip
    found = find_violations(both, JETPACK)
    assert [violation.severity for violation in found] == ["error", "warning"]
    assert found[0].text() == (
        "error: unknown-operator: Unique v: operator ai.onnx.Unique\n"
        "    limit: tensorrt-10.3 has no such operator\n    fix:   write it in standard operators of ONNX"
    )
    at_level = Violation(severity="error", rule="r", node="n", level=2, found="f", limit="l", fix="x")
    assert at_level.text().startswith("error: r: n, level 2: f\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"this is a text, not a model", "cannot be read as ONNX"),
        (b"\x08\x0a", "not an ONNX model: it has no graph"),
        (None, "no such file"),
    ],
)
def test_a_foreign_file_is_one_clear_error(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(EngineLoadError, match=message):
        find_violations(file, RTX)
    with pytest.raises(EngineLoadError, match="this is a folder"):
        find_violations(tmp_path, RTX)


def copy(exported: GetExport, folder: Path) -> Path:
    """An export of ours to damage."""
    source = exported("portable").file
    shutil.copy(source, folder / "model.onnx")
    shutil.copy(source.with_suffix(".json"), folder / "model.json")
    return folder / "model.onnx"


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_copy_of_ours_is_one_clear_error(damage: str, exported: GetExport, tmp_path: Path) -> None:
    file = copy(exported, tmp_path)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data[: len(data) // 3] if damage == "truncated" else data)
    with pytest.raises(ArtifactMismatchError, match=r"not the file that model\.json describes"):
        find_violations(file, RTX)
    if damage == "truncated":
        file.with_suffix(".json").unlink()
        with pytest.raises(EngineLoadError, match="cannot be read as ONNX: it is truncated"):
            find_violations(file, RTX)


def test_a_damaged_manifest_is_one_clear_error(exported: GetExport, tmp_path: Path) -> None:
    file = copy(exported, tmp_path)
    sidecar = file.with_suffix(".json")
    text = sidecar.read_text()
    sidecar.write_text(text.replace('"schema": 2', '"schema": 99', 1))
    with pytest.raises(ManifestVersionError, match="manifest schema 99"):
        find_violations(file, RTX)
    sidecar.write_text(text[: len(text) // 2])
    with pytest.raises(ManifestError, match="not a manifest"):
        find_violations(file, RTX)
    sidecar.unlink()
    # The copy inside the file does as well.
    assert read_onnx(file)[1] is not None


def test_a_foreign_model_is_checked_without_a_manifest(tmp_path: Path) -> None:
    file = tmp_path / "theirs.onnx"
    onnx.save(nms(), file)
    # Something else beside it is not ours to complain about.
    manifests.manifest_path(file).write_text('{"a": 1}')
    assert read_onnx(file)[1] is None
    assert [violation.rule for violation in find_violations(file, RTX)] == ["varying-shape"]


def test_weights_in_other_files_are_named(exported: GetExport, tmp_path: Path) -> None:
    proto, manifest = read_onnx(exported("portable").file)
    assert manifest is not None
    onnx.save(proto, tmp_path / "model.onnx", save_as_external_data=True, size_threshold=64)
    without = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    (found,) = find_violations(without, "onnxruntime", manifest)
    assert (found.severity, found.rule) == ("error", "external-data")
    (foreign,) = find_violations(without, JETPACK)
    assert (foreign.severity, foreign.rule) == ("warning", "external-data")
