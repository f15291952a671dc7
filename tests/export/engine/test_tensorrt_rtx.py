"""Every form of an export compiles with TensorRT-RTX, on a machine without a GPU; the standard NMS does not."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import edgerpn.manifest
from edgerpn.export.engine.build import BuildResult, build_engine
from edgerpn.export.engine.options import BuildConfig
from edgerpn.export.export_config import ExportConfig
from edgerpn.export.onnx.export import export_onnx
from edgerpn.export.precision.reduce import Photographs, reduce_precision
from edgerpn.manifest.parts import Precision
from tests.support.classes import CLASS_NAMES

pytestmark = pytest.mark.rtx

GetExport = Callable[[str], Any]
CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
LEVELS = ("pyramid", "single-level")
BATCHES = (1, "dynamic")
SOURCES = (None, (96, 160))
SMALL = ExportConfig(target="tensorrt-rtx", num_proposals=20, pre_nms=40, nms_iterations=4, max_ar_drop="off")


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


def in_precision(file: Path, precision: Precision, photographs: list[Path], folder: Path) -> Path:
    """A float32 graph in another precision."""
    if precision == "fp32":
        return file
    manifest = edgerpn.manifest.read(file)
    config = dataclasses.replace(SMALL, precision=precision, batch=manifest.input.batch or "dynamic")
    samples = Photographs(samples=photographs[:1], calibration=photographs)
    proto = reduce_precision(onnx.load(file), config, spec=manifest.input, photographs=samples).proto
    onnx.save(proto, folder / "model.onnx")
    edgerpn.manifest.write(manifest.replace(precision=precision), folder / "model.onnx")
    return folder / "model.onnx"


def build(file: Path, output: Path, precision: Precision, batch: int | str) -> BuildResult:
    """Builds an engine for every generation of GPUs, and checks the report of the build."""
    config = BuildConfig(backend="tensorrt-rtx", compute_capabilities=CAPABILITIES)
    result = build_engine(file, output, config)
    engine = result.manifest.engine
    assert engine is not None
    assert engine.compute_capabilities == CAPABILITIES
    assert (result.manifest.precision, engine.profile.max_batch) == (precision, 8 if batch == "dynamic" else 1)
    assert result.num_bytes > 20_000
    assert result.report is not None
    log = json.loads(result.report.read_text())["log"]
    assert [line["text"] for line in log if line["severity"] in ("error", "internal_error")] == []
    return result


@pytest.mark.parametrize(
    ("name", "precision"), [*(("portable", precision) for precision in PRECISIONS), ("portable-bgrx", "int8")]
)
def test_an_export_of_each_precision_is_built_for_every_generation_of_gpus(
    name: str, precision: Precision, exported: GetExport, photo_files: list[Path], tmp_path: Path
) -> None:
    file = in_precision(exported(name).file, precision, photo_files, tmp_path)
    build(file, tmp_path / "a.engine", precision, 1)


@pytest.fixture(scope="module")
def graph(
    checkpoints: dict[str, Path], photo_files: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Exports a float32 graph, once for each form."""
    made: dict[tuple[Any, ...], Path] = {}

    def export(levels: str, batch: Any, source: tuple[int, int] | None) -> Path:
        key = (levels, batch, source)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("graph") / "model.onnx"
            config = dataclasses.replace(SMALL, batch=batch, source_hw=source)
            export_onnx(checkpoints[levels], made[key], config, images=photo_files[:1])
        return made[key]

    return export


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=["letterboxed", "source"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_form_of_an_export_is_built_for_every_generation_of_gpus(
    precision: Precision,
    levels: str,
    batch: Any,
    source: tuple[int, int] | None,
    graph: Callable[..., Path],
    photo_files: list[Path],
    tmp_path: Path,
) -> None:
    file = in_precision(graph(levels, batch, source), precision, photo_files, tmp_path)
    result = build(file, tmp_path / "a.engine", precision, batch)
    assert result.manifest.input.source_hw == source


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_graph_with_features_of_each_proposal_is_built_for_every_generation_of_gpus(
    precision: Precision, exported: GetExport, photo_files: list[Path], tmp_path: Path
) -> None:
    file = in_precision(exported("described-portable").file, precision, photo_files, tmp_path)
    result = build(file, tmp_path / "a.engine", precision, 1)
    assert list(result.manifest.outputs_by_role) == ["boxes", "scores", "count", "embeddings", "features"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_graph_with_classes_is_built_for_every_generation_of_gpus(
    precision: Precision, exported: GetExport, photo_files: list[Path], tmp_path: Path
) -> None:
    file = in_precision(exported("classed-portable").file, precision, photo_files, tmp_path)
    result = build(file, tmp_path / "a.engine", precision, 1)
    assert list(result.manifest.outputs_by_role)[3:5] == ["labels", "class_scores"]
    assert result.manifest.class_names == CLASS_NAMES


@pytest.mark.slow
def test_a_graph_with_the_standard_nms_does_not_compile(exported: GetExport, capfd: pytest.CaptureFixture[str]) -> None:
    # Why there is a portable form: if this ever compiles, it can be reconsidered.
    size, errors = compile_engine(exported("standard").file)
    assert size == 0
    assert errors == []  # it is parsed, but no kernel implements it
    captured = capfd.readouterr()
    assert "NonMaxSuppression" in captured.out + captured.err
