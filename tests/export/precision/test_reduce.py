"""The recall gate accepts a graph within the budget; otherwise it falls back block by block, or refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgerpn.errors import ExportError, RecallDropError
from edgerpn.export.evaluate import RecallMeter, evaluate_model
from edgerpn.export.export_config import ExportConfig
from edgerpn.export.precision.reduce import Photographs, reduce_precision
from edgerpn.manifest import read
from edgerpn.manifest.parts import PrecisionSpec
from edgerpn.train.data.splits import Split

GetExport = Callable[[str], Any]
OVERFLOWING = ("backbone.stages.1.0", "backbone.stages.2.0")


@pytest.fixture(scope="module")
def meter(photos: Path) -> RecallMeter:
    return RecallMeter(Split(photos / "val.json", photos / "images"))


def reduce(
    made: Any, photographs: Photographs, *, proto: onnx.ModelProto | None = None, **options: Any
) -> tuple[onnx.ModelProto, PrecisionSpec, list[str]]:
    lines: list[str] = []
    config = ExportConfig(target=made.config.target, **options)
    proto = proto or onnx.load(made.file)
    spec = read(made.file).input
    reduced, _, facts = reduce_precision(proto, config, spec=spec, photographs=photographs, log=lines.append)
    return reduced, facts, lines


def overflowing(file: Path) -> onnx.ModelProto:
    """The same function in float32, but the values between two blocks exceed float16.

    A ReLU passes a positive factor on, so one convolution can be larger and the next smaller by it.
    """
    proto, factor = onnx.load(file), 2.0**17
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.name == "model.backbone.stages.2.0.conv.weight":
            tensor.CopyFrom(numpy_helper.from_array(values / np.float32(factor), tensor.name))
        elif tensor.name.startswith("model.backbone.stages.1.0.conv."):
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(factor / 2**3), tensor.name))
        elif tensor.name.startswith("model.backbone.stages.0.0.conv."):
            tensor.CopyFrom(numpy_helper.from_array(values * np.float32(2**3), tensor.name))
    bias = next(t for t in proto.graph.initializer if t.name == "model.backbone.stages.1.0.conv.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) * np.float32(2**3), bias.name))
    return proto


def test_float16_within_the_budget_is_accepted_as_a_whole(
    exported: GetExport, photos: Path, photo_files: list[Path], meter: RecallMeter
) -> None:
    made = exported("standard")
    graph, facts, lines = reduce(
        made, Photographs(samples=photo_files, meter=meter), precision="fp16", max_ar_drop=20.0
    )
    recall = evaluate_model(made.file, photos).metrics["AR@100"]
    figures = dict(facts.ar100)
    assert list(figures) == ["fp32", "fp16"]
    assert figures["fp32"] == pytest.approx(recall, abs=1e-5)
    assert facts == PrecisionSpec(ar100=facts.ar100, num_images=5, max_ar_drop=20.0)
    assert any(line.startswith("fp16: AR@100 ") and "20 may be lost" in line for line in lines)
    assert graph.ByteSize() < made.file.stat().st_size


@pytest.mark.parametrize(("name", "expected"), [("standard", ["fp32", "int8"]), ("portable", ["fp32", "fp16", "int8"])])
def test_int8_records_recall_of_what_lies_between_too(
    name: str, expected: list[str], exported: GetExport, photo_files: list[Path], meter: RecallMeter
) -> None:
    photographs = Photographs(samples=photo_files, calibration=photo_files, meter=meter)
    _, facts, lines = reduce(exported(name), photographs, precision="int8", max_ar_drop=50.0)
    assert [precision for precision, _ in facts.ar100] == expected
    assert all(0 < value < 1 for _, value in facts.ar100)
    assert (facts.calibration, facts.num_calibration_images, facts.kept_blocks) == ("percentile 99.999", 5, ())
    # The same photographs serve for calibration and for recall here.
    assert "warning: 5 of 5 calibration images are validation images too" in lines[0]


def test_the_blocks_that_overflow_stay_in_float32(
    exported: GetExport, photo_files: list[Path], meter: RecallMeter
) -> None:
    made = exported("standard")
    proto = overflowing(made.file)
    assert meter(proto) == pytest.approx(meter(onnx.load(made.file)), abs=0.01)
    photographs = Photographs(samples=photo_files, meter=meter)
    graph, facts, lines = reduce(made, photographs, proto=proto, precision="fp16", max_ar_drop=2.0)
    recall = dict(facts.ar100)
    assert recall["fp32"] - recall["fp16"] <= 0.02
    assert set(OVERFLOWING) <= set(facts.kept_blocks)
    assert len(facts.kept_blocks) <= 4
    half = {t.name for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    for block in OVERFLOWING:
        assert not [name for name in half if name.startswith(f"model.{block}.")]
    assert "model.head.window.fused.0.weight_half" in half
    start = lines.index("each block alone in fp16, the others in fp32:")
    assert lines[start + 1].split() == ["block", "AR", "lost", "logits", "off"]
    # Each of the two is enough to break the network, so they come before all others.
    assert {lines[start + 2].split()[0], lines[start + 3].split()[0]} == set(OVERFLOWING)
    assert any(line.startswith(f"fp16 with {', '.join(facts.kept_blocks)} in fp32: AR@100") for line in lines)


def test_without_fallback_the_error_names_the_blocks_and_what_helps(
    exported: GetExport, photo_files: list[Path], meter: RecallMeter
) -> None:
    made = exported("standard")
    with pytest.raises(RecallDropError) as caught:
        reduce(
            made,
            Photographs(samples=photo_files, meter=meter),
            proto=overflowing(made.file),
            precision="fp16",
            max_ar_drop=2.0,
            fallback=False,
        )
    message = str(caught.value)
    for part in ("fp16 loses ", "2 are allowed", *OVERFLOWING, "fallback is off", "--max-ar-drop", "--precision fp32"):
        assert part in message


def test_int8_is_refused_when_the_float16_around_it_loses_too_much(
    exported: GetExport, photo_files: list[Path], meter: RecallMeter
) -> None:
    made = exported("portable")
    photographs = Photographs(samples=photo_files, calibration=photo_files, meter=meter)
    with pytest.raises(RecallDropError, match=r"fp16 alone loses \d.*cannot help.*--set calibration=entropy"):
        reduce(made, photographs, proto=overflowing(made.file), precision="int8", max_ar_drop=2.0)


def test_without_a_budget_nothing_is_measured_and_a_line_reports_it(
    exported: GetExport, photo_files: list[Path]
) -> None:
    graph, facts, lines = reduce(
        exported("standard"), Photographs(samples=photo_files), precision="fp16", max_ar_drop="off"
    )
    assert facts == PrecisionSpec(ar100=(), num_images=0)
    assert lines == ["fp16: recall is not checked (--max-ar-drop off)"]
    assert any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.graph.initializer)


def test_few_objects_are_a_warning(exported: GetExport, photo_files: list[Path], meter: RecallMeter) -> None:
    photographs = Photographs(samples=photo_files, meter=meter)
    _, _, lines = reduce(exported("standard"), photographs, precision="fp16", max_ar_drop=6.0)
    assert lines[0].startswith("warning: only 15 objects on 5 validation images: one of them is worth 6.67 points")


@pytest.mark.parametrize(
    ("precision", "message"),
    [("fp16", "needs annotated validation images"), ("int8", r"needs photographs to calibrate on.*--calibration DIR")],
)
def test_missing_data_is_named(
    precision: str, message: str, exported: GetExport, photo_files: list[Path], meter: RecallMeter
) -> None:
    photographs = Photographs(samples=photo_files, meter=meter if precision == "int8" else None)
    with pytest.raises(ExportError, match=message):
        reduce(exported("standard"), photographs, precision=precision)


def test_a_meter_measures_the_first_images_up_to_its_limit(exported: GetExport, photos: Path) -> None:
    made = exported("standard")
    meter = RecallMeter(Split(photos / "val.json", photos / "images"), limit=3)
    assert (meter.num_images, meter.num_objects) == (3, 9)
    proto = onnx.load(made.file)
    for limit in (2, None):
        expected = evaluate_model(made.file, photos, limit=limit or 3)
        assert meter(proto, limit=limit) == expected.metrics["AR@100"]
