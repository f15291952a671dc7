"""The rules find violations of each target's limits; TensorRT-RTX refuses the same graphs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgerpn.export.limits.check import find_violations
from edgerpn.export.limits.graph import GraphView
from edgerpn.targets import TargetName

GetExport = Callable[[str], Any]
F, H, D = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE
U8, I64, B = TensorProto.UINT8, TensorProto.INT64, TensorProto.BOOL
RTX: TargetName = "tensorrt-rtx"
JETPACK: TargetName = "tensorrt-10.3"


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[Any]]],
    outputs: Mapping[str, tuple[int, list[Any]]],
    *,
    opset: int = 19,
    domains: Sequence[str] = (),
    **initializers: Any,
) -> onnx.ModelProto:
    taken, given = (
        [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in side.items()]
        for side in (inputs, outputs)
    )
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()]
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    built = helper.make_graph(list(nodes), "graph", taken, given, tensors)
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
    return graph([N(op, ["x", "i", "u"], ["y"], reduction=reduction)], IMAGE, SAME, i=index, u=update)


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
    return graph(nodes, {"u": (U8, [1, 8, 8, 3])}, {"y": (F, [None] * 4)})


# Name: graph, rule, severities for tensorrt-10.3, tensorrt-11, tensorrt-rtx and onnxruntime ("-": no violation).
GRAPHS: dict[str, tuple[Callable[[], onnx.ModelProto], str, str]] = {
    "topk at the limit": (lambda: topk(3840), "topk-limit", "----"),
    "topk above the limit": (lambda: topk(3841), "topk-limit", "eee-"),
    "topk above its axis": (lambda: topk(101, 100), "topk-axis", "eeee"),
    "topk of the input's values": (
        lambda: graph(
            [N("TopK", ["x", "k"], ["y", "i"])], {"x": (F, [1, 99]), "k": (I64, [1])}, {"y": (F, [1, None])}
        ),
        "topk-constant", "www-",
    ),
    "topk of an open shape": (
        lambda: graph(
            [N("Shape", ["v"], ["s"], start=0, end=1), N("TopK", ["x", "s"], ["y", "i"])],
            {"v": (F, ["n", 4]), "x": (F, [1, 99])}, {"y": (F, [1, None])},
        ),
        "topk-constant", "www-",
    ),
    "linear resize": (resize, "resize", "----"),
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
    "unique": (lambda: graph([N("Unique", ["x"], ["y"])], IMAGE, {"y": (F, [None])}), "not-checked", "www-"),
    "a plugin": (
        lambda: graph([N("Magic", ["x"], ["y"], domain="acme")], IMAGE, SAME, domains=["acme"]),
        "unknown-operator", "eee-",
    ),
    "scatternd": (lambda: scatter("ScatterND", "none"), "not-checked", "----"),
    "scatternd that adds": (lambda: scatter("ScatterND", "add"), "not-checked", "www-"),
    "int8": (lambda: quantize(np.int8(0)), "quantize", "----"),
    "zero point": (lambda: quantize(np.int8(3)), "quantize", "eee-"),
    "unsigned with a zero point": (lambda: quantize(np.uint8(128)), "quantize", "eee-"),
    "unsigned": (lambda: quantize(np.uint8(0)), "quantize", "eee-"),
    "unsigned by default": (lambda: quantize(None), "quantize", "eee-"),
    "quantized float16": (lambda: quantize(np.int8(0), dtype=np.float16), "invalid", "----"),
    "quantized float16 at opset 18": (
        lambda: quantize(np.int8(0), dtype=np.float16, opset=18), "invalid", "eeee",
    ),
    "float64": (
        lambda: graph(
            [N("Cast", ["x"], ["d"], to=D), N("Add", ["d", "c"], ["e"]), N("Cast", ["e"], ["y"], to=F)],
            IMAGE, SAME, c=np.float64(1.5),
        ),
        "not-checked", "www-",
    ),
    "mixed floats": (
        lambda: graph([N("Add", ["x", "c"], ["y"])], IMAGE, SAME, c=np.float16(1.5)), "invalid", "eeee",
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
    found_severities = ""
    for target in (JETPACK, "tensorrt-11", RTX, "onnxruntime"):
        found = [violation for violation in find_violations(proto, target) if violation.rule == rule]
        assert len({(violation.node, violation.found) for violation in found}) == len(found)
        severities = {violation.severity[0] for violation in found}
        assert len(severities) <= 1
        found_severities += "".join(severities) or "-"
    assert found_severities == expected


def compiles(proto: onnx.ModelProto) -> bool:
    """Returns whether TensorRT-RTX parses and builds a graph."""
    trt = importlib.import_module("tensorrt_rtx")
    builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse(proto.SerializeToString()):
        return False
    return builder.build_serialized_network(network, builder.create_builder_config()) is not None


# The compiler accepts these but computes other numbers than the file: see the rules' docstrings.
COMPILED_ALL_THE_SAME = {"unsigned", "unsigned by default", "quantized float16 at opset 18", "opset 6"}
# The rules leave these to the compiler.
LEFT_TO_IT = {name for name, (_, rule, _) in GRAPHS.items() if rule == "not-checked"} | {"topk of the input's values"}
OPEN_SHAPES = {"topk of an open shape", "open height and width", "an open batch"}


@pytest.mark.rtx
@pytest.mark.parametrize(
    "name", [name for name in GRAPHS if name not in OPEN_SHAPES | COMPILED_ALL_THE_SAME | LEFT_TO_IT]
)
def test_tensorrt_rtx_refuses_what_the_rules_call_an_error(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    proto = GRAPHS[name][0]()
    errors = [violation for violation in find_violations(proto, RTX) if violation.severity == "error"]
    assert compiles(proto) == (not errors)


def test_constants_are_found_in_nodes_and_initializers() -> None:
    for constant in (
        N("Constant", [], ["c"], value=numpy_helper.from_array(np.array([2000]))),
        N("Constant", [], ["c"], value_ints=[2000]),
    ):
        nodes = [constant, N("TopK", ["x", "c"], ["y", "i"])]
        view = GraphView(graph(nodes, {"x": (F, [1, 1500])}, {"y": (F, [1, None])}), None)
        assert view.constant("c") == [2000]
        assert view.constant("x") is None
        (found,) = [v for v in find_violations(view.proto, JETPACK) if v.rule.startswith("topk")]
        assert (found.rule, found.found) == ("topk-axis", "K = 2000 of 1500 elements")


def test_operators_inside_subgraphs_and_functions_are_seen() -> None:
    body = helper.make_function(
        "ours", "Both", ["x"], ["y"], [N("NonZero", ["x"], ["n"]), N("Cast", ["n"], ["y"], to=F)],
        [helper.make_opsetid("", 19)],
    )  # fmt: skip
    proto = graph([N("Both", ["x"], ["y"], domain="ours")], IMAGE, {"y": (F, [None, None])}, domains=["ours"])
    proto.functions.append(body)
    assert [violation.rule for violation in find_violations(proto, RTX)] == ["varying-shape"]


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


def broken(damage: str) -> onnx.ModelProto:
    """A graph that some tool, or a wrong byte, has spoilt."""
    proto = topk(5)
    if damage == "a type that does not exist":
        proto.graph.output[0].type.tensor_type.elem_type = 99
    elif damage == "too few bytes of a constant":
        proto.graph.initializer[0].raw_data = b"\x05\x00"
    elif damage == "a constant of another type":
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([np.nan], np.float32), "k"))
    elif damage == "an attribute of another type":
        proto.graph.node[0].attribute.append(helper.make_attribute("axis", 0.5))
    elif damage == "nodes without outputs":
        proto.graph.node.extend([N("NonZero", ["x"], []), N("Constant", [], [], value_int=1)])
    else:
        called = helper.make_function(
            "ours", "F", ["x"], ["y"], [N("F", ["x"], ["y"], domain="ours")],
            [helper.make_opsetid("", 19), helper.make_opsetid("ours", 1)],
        )  # fmt: skip
        proto.functions.append(called)
        proto.opset_import.append(helper.make_opsetid("ours", 1))
        proto.graph.node.append(N("F", ["y"], ["z"], domain="ours"))
    return proto


@pytest.mark.parametrize(
    "damage",
    [
        "a type that does not exist",
        "too few bytes of a constant",
        "a constant of another type",
        "an attribute of another type",
        "nodes without outputs",
        "a function that calls itself",
    ],
)
def test_a_broken_graph_is_an_error_for_every_target(damage: str) -> None:
    targets: tuple[TargetName, ...] = ("onnxruntime", JETPACK, RTX)
    for target in targets:
        found = [
            violation.rule for violation in find_violations(broken(damage), target) if violation.severity == "error"
        ]
        assert found in (["invalid"], ["unknown-operator"])


def test_a_function_with_too_many_inputs_is_an_error() -> None:
    called = helper.make_function("ours", "F", ["a"], ["b"], [N("Relu", ["a"], ["b"])], [helper.make_opsetid("", 19)])
    proto = graph([N("F", ["x", "x"], ["y"], domain="ours")], IMAGE, SAME, domains=["ours"])
    proto.functions.append(called)
    assert [violation.rule for violation in find_violations(proto, "onnxruntime")] == ["load"]
    assert [violation.rule for violation in find_violations(proto, RTX)] == ["unknown-operator"]


def test_errors_come_before_warnings_and_read_well() -> None:
    both = graph([*nms().graph.node, N("Magic", ["b"], ["v"], domain="acme")],
                 {"b": (F, [1, 5, 4]), "s": (F, [1, 1, 5])}, {"v": (F, [1])}, domains=["acme"],
                 m=np.array([10]), t=np.array([0.5], np.float32))  # fmt: skip
    found = find_violations(both, JETPACK)
    assert [violation.severity for violation in found] == ["error", "warning"]
    assert found[0].text() == (
        "error: unknown-operator: Magic v: operator acme.Magic\n"
        "    limit: tensorrt-10.3 would need a plugin of this name, and edgerpn loads none\n"
        "    fix:   write it in standard operators of ONNX"
    )
