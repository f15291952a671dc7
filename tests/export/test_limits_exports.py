"""Our own exports: nothing that a target cannot do, or the level of the pyramid where it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from edgerpn.errors import ExportError
from edgerpn.export.limits import TARGETS, Target, find_violations, oldest_target, refuse_violations
from edgerpn.export.limits_graph import GraphView, level_anchors, read_onnx

GetExport = Callable[[str], Any]
RTX: Target = "tensorrt-rtx"
JETPACK: Target = "tensorrt-10.3"


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
