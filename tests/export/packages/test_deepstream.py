"""The bundle for DeepStream, without DeepStream: its graph in ONNX Runtime, its parser as nvinfer calls it."""

from __future__ import annotations

import ast
import configparser
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgerpn import manifest
from edgerpn.errors import EngineLoadError, ExportError, ParityError
from edgerpn.export.onnx import deepstream
from edgerpn.export.packages.package import package
from edgerpn.runtime import load
from tests.support.models import NETWORK_HW, NUM_PROPOSALS, MakeModel, write_model

CLASSES = ("fish", "crab")


def read_config(file: Path) -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    assert config.read(file) == [str(file)]
    return config


def run_planes(folder: Path, frame: np.ndarray) -> dict[str, np.ndarray]:
    """Runs the graph on a frame as nvinfer prepares it; the outputs of the first frame, as nvinfer hands them over."""
    config = read_config(folder / "config_tensors.txt")["property"]
    assert (config["model-color-format"], config["network-input-order"]) == ("1", "0")  # BGR, planes
    planes = float(config["net-scale-factor"]) * frame.astype(np.float32).transpose(2, 0, 1)
    assert ";".join(map(str, planes.shape)) == config["infer-dims"]
    session = onnxruntime.InferenceSession(folder / config["onnx-file"])
    outputs = session.run(None, {session.get_inputs()[0].name: planes[None]})
    return {node.name: output[0] for node, output in zip(session.get_outputs(), outputs, strict=True)}


def test_the_graph_finds_the_same_proposals_in_planes_of_floats(bundles: dict[str, Path], packed_model: Path) -> None:
    folder = bundles["deepstream"]
    graph = onnx.load(folder / "model.onnx").graph
    dims = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.output)
    }
    assert dims == {
        "frames": ["N", 3, *NETWORK_HW], "boxes": ["N", NUM_PROPOSALS, 4], "scores": ["N", NUM_PROPOSALS],
        "count": ["N", 1],
    }  # fmt: skip
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    with np.load(folder / "smoke.npz") as arrays, load(packed_model) as model:
        for frame in arrays["frames"]:
            found, proposals = run_planes(folder, frame), model(frame)
            assert int(found["count"][0]) == len(proposals)
            assert found["boxes"][: len(proposals)].tolist() == proposals.boxes.tolist()
            assert found["scores"][: len(proposals)].tolist() == proposals.scores.tolist()


def test_the_configurations_name_files_of_the_bundle(bundles: dict[str, Path]) -> None:
    folder = bundles["deepstream"]
    parsed, tensors = read_config(folder / "config_objects.txt"), read_config(folder / "config_tensors.txt")
    assert (tensors["property"]["network-type"], tensors["property"]["output-tensor-meta"]) == ("100", "1")
    assert (parsed["property"]["network-type"], parsed["property"]["cluster-mode"]) == ("0", "4")
    assert parsed["class-attrs-all"]["pre-cluster-threshold"] == "0.2"
    names = (folder / parsed["property"]["labelfile-path"]).read_text(encoding="utf-8").splitlines()
    assert names == ["object"]
    assert int(parsed["property"]["num-detected-classes"]) == len(names)
    page = (folder / "README.md").read_text(encoding="utf-8")
    assert f"-o {parsed['property']['custom-lib-path']}" in page
    source = (folder / "edgerpn_parser.cpp").read_text(encoding="utf-8")
    assert f"bool {parsed['property']['parse-bbox-func-name']}(" in source
    for name in ("edgerpn_parser.cpp", "config_objects.txt", "edgerpn_tensors.py"):
        assert name in page
        assert (folder / name).is_file()


@pytest.mark.parametrize(("precision", "batch"), [("int8", 2), ("fp16", None)])
def test_a_reduced_precision_is_built_as_its_graph_says_before_nvinfer_starts(
    precision: Any, batch: int | None, make_packed: MakeModel, tmp_path: Path
) -> None:
    file = make_packed(batch=batch)
    manifest.write(manifest.read(file).replace(precision=precision), file)
    folder = package(file, "deepstream", tmp_path / "bundle")
    page = (folder / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
    (command,) = (line.split() for line in page.splitlines() if "trtexec" in line)
    assert "--stronglyTyped" in command
    config = read_config(folder / "config_objects.txt")["property"]
    assert f"--saveEngine={config['model-engine-file']}" in command
    height, width = NETWORK_HW
    shapes = [f"--{end}Shapes=frames:1x3x{height}x{width}" for end in ("min", "opt", "max")]
    assert command[4:] == ([] if batch else shapes)


def test_float32_is_built_by_nvinfer_and_frames_are_scaled_as_in_training(bundles: dict[str, Path]) -> None:
    folder = bundles["deepstream"]
    assert "trtexec" not in (folder / "README.md").read_text(encoding="utf-8")
    for name in ("config_objects.txt", "config_tensors.txt"):
        config = read_config(folder / name)["property"]
        assert (config["network-mode"], config["scaling-filter"]) == ("0", "1")  # float32, bilinear


@pytest.fixture(scope="module")
def call_parser(root: Path, bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs the bundle's parser on tensors; the status, and the objects: class, left, top, width, height, score."""
    if shutil.which("c++") is None:
        pytest.skip("no compiler for C++")
    folder = tmp_path_factory.mktemp("parser")
    support, program = root / "tests" / "support" / "nvinfer", folder / "call_parser"
    sources = [bundles["deepstream"] / "edgerpn_parser.cpp", support / "call_parser.cpp"]
    words = ["c++", "-Wall", "-Wextra", "-Werror", "-I", support, *sources, "-o", program]
    subprocess.run(list(map(str, words)), check=True)

    def call(tensors: dict[str, np.ndarray], num_classes: int, threshold: float) -> tuple[int, list[list[float]]]:
        files = []
        for name, array in tensors.items():
            (folder / name).write_bytes(array.tobytes())
            files.append(f"{name}={folder / name}")
        words = [str(program), str(num_classes), str(threshold), *files]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return done.returncode, [[float(word) for word in line.split()] for line in done.stdout.splitlines()]

    return call


@pytest.mark.parametrize("names", [(), CLASSES])
def test_parser_and_program_find_the_objects_of_the_golden_frames(
    names: tuple[str, ...], make_packed: MakeModel, call_parser: Any, tmp_path: Path
) -> None:
    file = make_packed(batch=1, class_names=names)
    folder = package(file, "deepstream", tmp_path / "bundle")
    program = runpy.run_path(str(folder / "edgerpn_tensors.py"))
    assert program["NAMES"] == (names or ("object",))
    height, width = NETWORK_HW
    with np.load(folder / "smoke.npz") as arrays, load(file) as model:
        for frame in arrays["frames"]:
            tensors, proposals = run_planes(folder, frame), model(frame)
            kept = proposals.above(0.65)
            numbers = np.zeros(len(kept)) if kept.labels is None else kept.labels
            ltwh = np.concatenate([kept.boxes[:, :2], kept.boxes[:, 2:] - kept.boxes[:, :2]], axis=1)
            expected = [
                [float(number), *box, score] for number, box, score in zip(numbers, ltwh, kept.scores, strict=True)
            ]
            status, objects = call_parser(tensors, len(names) or 1, 0.65)
            assert status == 0
            assert objects == [pytest.approx(row, abs=1e-5) for row in expected]
            program["objects_of"].__globals__["MIN_SCORE"] = 0.65
            # A frame of twice the size with a strip at the bottom, which nvinfer scales into the network's input.
            found = program["objects_of"](tensors, (2 * width, 2 * height))
            assert [[number, *(np.array(box) / 2), score] for number, score, box in found] == [
                pytest.approx(row, abs=1e-5) for row in expected
            ]


def test_the_parser_leaves_out_unknown_classes_and_refuses_other_tensors(call_parser: Any) -> None:
    tensors = {
        "boxes": np.array([[0, 1, 10, 21], [2, 3, 4, 5], [6, 6, 7, 7]], np.float32),
        "scores": np.array([0.9, 0.8, 0.0], np.float32),
        "count": np.array([2], np.int32),
        "labels": np.array([1, 2, 0], np.int32),
    }
    assert call_parser(tensors, 2, 0.5) == (0, [[1, 0, 1, 10, 20, pytest.approx(0.9)]])
    assert call_parser({"output0": tensors["boxes"]}, 2, 0.5) == (3, [])


def test_the_program_maps_boxes_from_the_top_left_to_the_frame(bundles: dict[str, Path]) -> None:
    source = (bundles["deepstream"] / "edgerpn_tensors.py").read_text(encoding="utf-8")
    ast.parse(source)
    objects_of = runpy.run_path(str(bundles["deepstream"] / "edgerpn_tensors.py"))["objects_of"]
    tensors = {
        "boxes": np.array([[16, 24, 80, 48], [0, 0, 160, 96], [0, 0, 8, 8]], np.float32),
        "scores": np.array([0.9, 0.3, 0.1], np.float32),
        "count": np.array([3], np.int32),
    }
    # 320 x 120 pixels are scaled by a half to 160 x 60, and the rest of the 160 x 96 is padding.
    assert objects_of(tensors, (320, 120)) == [
        (0, pytest.approx(0.9), [32, 48, 128, 48]),
        (0, pytest.approx(0.3), [0, 0, 320, 120]),
    ]


def test_a_graph_for_deepstream_is_described_and_runs_nowhere_else(
    bundles: dict[str, Path], packed_model: Path
) -> None:
    file = bundles["deepstream"] / "model.onnx"
    inside = {entry.key: entry.value for entry in onnx.load(file).metadata_props}[manifest.METADATA_KEY]
    described = manifest.parse(inside, source="inside")
    assert (described.layout, described.schema) == ("deepstream", manifest.SCHEMA_LAYOUT)
    assert described.provenance.parent_sha256 == manifest.read(packed_model).provenance.onnx_sha256
    with pytest.raises(EngineLoadError, match="in the layout of deepstream, another program"):
        load(file)


def test_graphs_that_deepstream_cannot_run_are_refused(tmp_path: Path, packed_model: Path) -> None:
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("standard", {}, "its NMS is standard, .*export the model with --target tensorrt"),
        ("four", {"color_order": "BGRx"}, "its frames are BGRx, and nvinfer delivers BGR"),
    )
    for name, values, message in cases:
        (tmp_path / name).mkdir()
        path = write_model(tmp_path / name, **values)
        frames = np.zeros((1, *manifest.read(path).input.frame_shape), np.uint8)
        with pytest.raises(ExportError, match=message):
            deepstream.write_deepstream(path, tmp_path / "out.onnx", frames)


def test_a_graph_with_other_proposals_is_refused(
    packed_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with np.load(packed_model.with_suffix(".golden.npz")) as arrays:
        frames = arrays["frames"]
    right = deepstream._with_planes

    def wrong(*args: Any) -> Any:
        proto = right(*args)
        for node in proto.graph.node:
            if node.op_type == "Greater":
                node.op_type = "Less"
        return proto

    monkeypatch.setattr(deepstream, "_with_planes", wrong)
    with pytest.raises(ParityError, match="the proposals for DeepStream are not those of"):
        deepstream.write_deepstream(packed_model, tmp_path / "out.onnx", frames)
