"""Our own exports violate no limit of their target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgerpn.errors import ExportError
from edgerpn.export.limits.check import find_violations, refuse_violations
from edgerpn.export.limits.graph import read_onnx
from edgerpn.targets import TARGETS, TargetName, oldest_target

GetExport = Callable[[str], Any]
RTX: TargetName = "tensorrt-rtx"
JETPACK: TargetName = "tensorrt-10.3"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["portable", "portable-source", "portable-bgrx", "single-level", "peaks-portable"])
def test_an_export_with_portable_nms_has_nothing_that_any_target_cannot_do(
    name: str, target: TargetName, exported: GetExport
) -> None:
    assert find_violations(exported(name).file, target) == ()


def test_the_standard_nms_is_named_wherever_it_is(exported: GetExport) -> None:
    file = exported("standard").file
    found = find_violations(file, RTX)
    assert {(violation.severity, violation.rule) for violation in found} == {("error", "varying-shape")}
    assert all("--set nms=portable" in violation.fix for violation in found)
    assert [violation.node for violation in find_violations(file, JETPACK)] == [violation.node for violation in found]
    assert {violation.severity for violation in find_violations(file, JETPACK)} == {"warning"}
    assert find_violations(file, "onnxruntime") == ()


def three_levels(counts: tuple[int, int, int]) -> onnx.ModelProto:
    """The best of each level of 384, 96 and 24 scores, NMS on each, and a fourth TopK over all of them."""
    nodes, tensors, values = [], [], []
    for level, (size, k) in enumerate(zip((384, 96, 24), counts, strict=True)):
        values.append(helper.make_tensor_value_info(f"x{level}", TensorProto.FLOAT, [1, 1, size]))
        values.append(helper.make_tensor_value_info(f"b{level}", TensorProto.FLOAT, [1, k, 4]))
        tensors.append(numpy_helper.from_array(np.array([k]), f"k{level}"))
        nodes.append(helper.make_node("TopK", [f"x{level}", f"k{level}"], [f"s{level}", f"i{level}"]))
        nodes.append(helper.make_node("Sigmoid", [f"s{level}"], [f"p{level}"]))
        nodes.append(helper.make_node("NonMaxSuppression", [f"b{level}", f"p{level}"], [f"n{level}"]))
    nodes.append(helper.make_node("Concat", ["s0", "s1", "s2"], ["all"], axis=2))
    nodes.append(helper.make_node("TopK", ["all", "k2"], ["best", "places"]))
    nodes.append(helper.make_node("NonMaxSuppression", ["b0", "all"], ["n"]))
    outputs = [helper.make_tensor_value_info("best", TensorProto.FLOAT, [1, 1, counts[2]])]
    graph = helper.make_graph(nodes, "levels", values, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_counts_above_a_level_or_the_limit_are_refused() -> None:
    found = find_violations(three_levels((100, 97, 4000)), JETPACK)
    assert [(v.node, v.found) for v in found if v.rule == "topk-axis"] == [
        ("TopK s1", "K = 97 of 96 elements"),
        ("TopK s2", "K = 4000 of 24 elements"),
    ]
    assert ("topk-limit", "K = 4000 of 24 elements") in [(v.rule, v.found) for v in found]
    assert [v.severity for v in found if v.rule == "varying-shape"] == ["warning"] * 4
    with pytest.raises(ExportError, match=r"(?s)^here: tensorrt-10\.3 cannot run .*TopK s1: K = 97 of 96.*fix:"):
        refuse_violations(three_levels((100, 97, 4000)), JETPACK, None, where="here")


def test_warnings_do_not_stop_an_export(exported: GetExport) -> None:
    proto, manifest = read_onnx(exported("standard").file)
    kept = refuse_violations(proto, oldest_target("tensorrt"), manifest, where="here")
    assert {violation.severity for violation in kept} == {"warning"}


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
