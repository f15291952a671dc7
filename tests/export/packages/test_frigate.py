"""The bundle for Frigate, read by Frigate's rules, which these functions state anew.

Source: blakeblackshear/frigate, frigate/detectors/plugins/onnx.py, frigate/object_detection/base.py and
frigate/util/builtin.py, read in 2026.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgerpn import golden, manifest
from edgerpn.__main__ import main
from edgerpn.errors import EngineLoadError, ExportError
from edgerpn.export.engine.build import build_engine
from edgerpn.export.limits.check import find_violations
from edgerpn.export.limits.graph import read_onnx
from edgerpn.export.onnx.frigate import raise_scores, write_frigate
from edgerpn.export.packages.package import package
from edgerpn.manifest import FRIGATE_ROWS
from edgerpn.models import find_model
from edgerpn.runtime import load
from edgerpn.targets import TargetName
from tests.support.models import NETWORK_HW, MakeModel, write_model

yaml = pytest.importorskip("yaml")


def frigate_labels(file: Path) -> dict[int, str]:
    """The label map: number and label a line; numbers without a label are unknown."""
    pairs = [line.split(" ", 1) for line in file.read_text(encoding="utf-8").splitlines()]
    assert all(number.isdigit() for number, _ in pairs)
    return {**dict.fromkeys(range(91), "unknown"), **{int(number): label for number, label in pairs}}


def frigate_detections(
    outputs: list[np.ndarray], *, width: int, height: int, labels: dict[int, str]
) -> list[tuple[str, float, tuple[float, ...]]]:
    """Label, score and top, left, bottom, right in shares of the region, of a detector with model_type yolonas.

    A list of 20 rows is filled up to the first class below 0; the first score below 0.4 ends the reading of it.
    """
    table = np.zeros((20, 6), np.float32)
    for row, (_, x1, y1, x2, y2, score, number) in zip(table, outputs[0], strict=False):
        if number < 0:
            break
        row[:] = (number, score, y1 / height, x1 / width, y2 / height, x2 / width)
    detections = []
    for number, score, *box in table.tolist():
        if score < 0.4:
            break
        detections.append((labels[int(number)], score, tuple(box)))
    return detections


@pytest.mark.parametrize("names", [(), ("fish", 'größte "Muschel"', "3 crabs")])
def test_frigate_finds_the_proposals_of_the_golden_frames(
    names: tuple[str, ...], make_packed: MakeModel, tmp_path: Path
) -> None:
    model_file = make_packed(batch=1, class_names=names)
    folder = package(model_file, "frigate", tmp_path / "bundle")
    config: dict[str, Any] = yaml.safe_load((folder / "frigate.yml").read_text(encoding="utf-8"))
    settings = config["model"]
    assert (settings["model_type"], settings["input_tensor"], settings["input_pixel_format"]) == (
        "yolonas",
        "nhwc",
        "bgr",
    )
    assert settings["input_dtype"] == "int"  # Frigate's frames as they are: uint8
    height, width = settings["height"], settings["width"]
    assert (height, width) == NETWORK_HW
    labels = frigate_labels(folder / Path(settings["labelmap_path"]).name)
    known = names or ("object",)
    assert [labels[number] for number in range(len(known) + 1)] == [*known, "unknown"]
    assert [*known] == config["objects"]["track"] == [*config["objects"]["filters"]]
    session = onnxruntime.InferenceSession(folder / Path(settings["path"]).name)
    with np.load(folder / "smoke.npz") as arrays, load(model_file) as model:
        for frame in arrays["frames"]:
            outputs = session.run(None, {session.get_inputs()[0].name: frame[None]})
            proposals = model(frame)
            scores = raise_scores(proposals.scores, 0.2)
            shares = proposals.boxes / np.array([width, height, width, height], np.float32)
            found = frigate_detections(outputs, width=width, height=height, labels=labels)
            classes = [0] * len(proposals) if proposals.labels is None else proposals.labels.tolist()
            expected: list[Any] = [
                (known[number], pytest.approx(score), pytest.approx((y1, x1, y2, x2)))
                for number, score, (x1, y1, x2, y2) in zip(classes, scores.tolist(), shares.tolist(), strict=True)
            ]
            assert found == expected


def test_scores_are_raised_so_that_one_of_the_users_choice_is_a_half() -> None:
    scores = np.array([1.0, 0.6, 0.2, 0.1, 0.0], np.float32)
    raised = raise_scores(scores, 0.2)
    assert raised[[0, 2, 4]] == pytest.approx([1.0, 0.5, 0.0])
    assert (np.diff(raised) < 0).all()
    assert raise_scores(scores, 0.5) == pytest.approx(scores)


def test_the_rows_of_a_real_graph_are_its_best_20_proposals(tmp_path: Path) -> None:
    file = find_model("general-384x640")
    frames = golden.read(file, manifest.read(file)).frames
    with load(file) as model:
        outputs = model.backend.infer(frames)
    assert outputs.count.min() > FRIGATE_ROWS
    described = write_frigate(file, tmp_path / "rows.onnx", frames, min_score=0.5)
    session = onnxruntime.InferenceSession(tmp_path / "rows.onnx")
    assert [(node.name, node.shape) for node in session.get_outputs()] == [("rows", [20, 7])]
    assert session.get_inputs()[0].shape == [1, *described.input.frame_shape]
    for number, frame in enumerate(frames):
        (rows,) = session.run(None, {"frames": frame[None]})
        assert rows[:, [0, 6]].tolist() == [[0.0, 0.0]] * 20
        assert rows[:, 1:5] == pytest.approx(outputs.boxes[number, :20], abs=1e-2)
        assert rows[:, 5] == pytest.approx(outputs.scores[number, :20], abs=1e-5)


def test_a_graph_for_frigate_is_described_and_runs_nowhere_else(bundles: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes((bundles["frigate"] / "model.onnx").read_bytes())
    inside = {entry.key: entry.value for entry in onnx.load(file).metadata_props}[manifest.METADATA_KEY]
    described = manifest.parse(inside, source="inside")
    assert (described.layout, described.schema, described.input.batch) == ("frigate", manifest.SCHEMA_LAYOUT, 1)
    assert [(spec.name, spec.shape) for spec in described.outputs] == [("rows", (20, 7))]
    assert "the power by which 0.2 becomes 0.5" in described.outputs[0].meaning
    with pytest.raises(
        EngineLoadError, match=r"model\.onnx: this graph is in the layout of frigate, another program.*--layout"
    ):
        load(file)
    manifest.write(described, file)
    for use in (load, lambda path: build_engine(path, tmp_path / "model.engine")):
        with pytest.raises(EngineLoadError, match="in the layout of frigate"):
            use(file)
    with pytest.raises(ExportError, match="its layout is frigate; package the ONNX file that it was made from"):
        package(file, "frigate", tmp_path / "again")
    assert main(["inspect", str(file)]) == 0


@pytest.mark.parametrize(
    ("program", "use", "target", "refused"),
    [
        ("frigate", "Frigate alone, which runs it by ONNX Runtime, which may use", "onnxruntime", "tensorrt-rtx"),
        ("deepstream", "DeepStream alone, which runs it by TensorRT;", "tensorrt-10.8", "onnxruntime"),
    ],
)
def test_the_check_says_which_program_runs_a_graph_and_refuses_other_libraries(
    program: str,
    use: str,
    target: TargetName,
    refused: TargetName,
    bundles: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = bundles[program] / "model.onnx"
    assert main(["check", str(file), "--target", target]) == 0, capsys.readouterr().out
    shown = capsys.readouterr().out
    assert f"note: model.onnx is for {use}" in shown
    assert main(["check", str(file), "--target", refused]) == 1
    assert "error: layout: file: a graph for " in capsys.readouterr().out
    proto, described = read_onnx(file)
    assert described is not None
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 21
    name = proto.graph.output[0].name
    assert [v.node for v in find_violations(proto, target, described) if v.rule == "interface"] == [f"tensor {name}"]


def test_graphs_that_frigate_cannot_feed_are_refused(tmp_path: Path) -> None:
    for name, values, message in (
        ("two", {"batch": 2}, "its batch is 2, and Frigate delivers one frame at a time"),
        ("four", {"color_order": "BGRx"}, "its frames are BGRx, and Frigate delivers BGR"),
    ):
        (tmp_path / name).mkdir()
        path = write_model(tmp_path / name, **values)
        frames = np.zeros((1, *manifest.read(path).input.frame_shape), np.uint8)
        with pytest.raises(ExportError, match=message):
            write_frigate(path, tmp_path / "out.onnx", frames, min_score=0.5)
        assert not (tmp_path / "out.onnx").exists()


def test_int8_must_be_for_the_library_of_the_program(packed_model: Path, tmp_path: Path) -> None:
    for name in (packed_model.name, packed_model.with_suffix(".golden.npz").name):
        shutil.copy(packed_model.with_name(name), tmp_path)
    file, int8 = tmp_path / packed_model.name, manifest.read(packed_model).replace(precision="int8")
    manifest.write(int8.replace(target="tensorrt"), file)
    with pytest.raises(ExportError, match=r"int8 for tensorrt, which .* makes coarser; .* --target onnxruntime"):
        package(file, "frigate", tmp_path / "refused")
    smoke = json.loads((package(file, "deepstream", tmp_path / "deepstream") / "smoke.json").read_text())
    assert smoke["disabled_optimizers"] == ["WeightBiasQuantization"]
    manifest.write(int8, file)
    smoke = json.loads((package(file, "frigate", tmp_path / "frigate") / "smoke.json").read_text())
    assert (smoke["disabled_optimizers"], smoke["min_iou"]) == ([], 0.8)
