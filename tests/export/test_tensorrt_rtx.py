"""Portable graphs compile with TensorRT-RTX, on a machine without a GPU; the standard NMS does not."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.rtx

GetExport = Callable[[str], Any]


def compile_engine(file: Path) -> tuple[int, list[str]]:
    """Size in bytes of the engine made from an ONNX file (0: none), and the parser's errors."""
    trt = importlib.import_module("tensorrt_rtx")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse_from_file(str(file)):
        return 0, [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    frames = network.get_input(0)
    if frames.shape[0] == -1:
        profile = builder.create_optimization_profile()
        sizes = tuple(frames.shape)[1:]
        profile.set_shape("frames", (1, *sizes), (2, *sizes), (4, *sizes))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return (plan.nbytes if plan is not None else 0), []


@pytest.mark.parametrize(
    ("name", "is_dynamic", "has_source"),
    [
        ("portable", False, False),
        ("portable-source", False, True),
        ("single-level", True, False),
        ("peaks-portable", True, False),
    ],
)
def test_a_portable_graph_compiles(name: str, is_dynamic: bool, has_source: bool, exported: GetExport) -> None:
    made = exported(name)
    assert (made.config.fixed_batch is None, made.config.source_hw is not None) == (is_dynamic, has_source)
    size, errors = compile_engine(made.file)
    assert errors == []
    assert size > 20_000


def test_a_graph_with_the_standard_nms_does_not_compile(exported: GetExport, capfd: pytest.CaptureFixture[str]) -> None:
    # Why there is a portable form: if this ever compiles, it can be reconsidered.
    size, errors = compile_engine(exported("standard").file)
    assert size == 0
    assert errors == []  # it is parsed, but no kernel implements it
    captured = capfd.readouterr()
    assert "NonMaxSuppression" in captured.out + captured.err
