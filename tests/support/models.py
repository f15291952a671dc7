"""Real models, videos and images for the runtime's tests.

The model `bright` obeys the graph's interface with plain operations: it boxes the pixels whose green is above 180,
and its count is (largest blue - 120) / 10, within 0 to K. So a test chooses box and count by painting a frame, and
the grey 114 of padding counts as nothing.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgerpn import files, settings
from edgerpn import manifest as manifests
from edgerpn.manifest import AnchorSpec, EngineSpec, InputSpec, Manifest, ProposalSpec, Provenance
from edgerpn.manifest.parts import ProfileSpec
from edgerpn.runtime.backends.tensorrt.compatibility import this_platform
from tests.support import tensorrt_standin

NUM_PROPOSALS = 10
NETWORK_HW = (96, 160)

Image = npt.NDArray[np.uint8]
MakeModel = Callable[..., Path]


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """Writes a `bright` model and its manifest."""
    return write_model


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `bright` model of batch 1 whose frames are letterboxed on the host."""
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def paint() -> Callable[..., Image]:
    """Paints frames that the `bright` model understands."""
    return paint_frame


@pytest.fixture(scope="session")
def video_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 40 frames, 320x192 at 29.97 per second, with a box that moves right and i % 4 proposals."""
    path = tmp_path_factory.mktemp("video") / "moving.avi"
    write_video(path, num_frames=40)
    return path


@pytest.fixture(scope="session")
def make_video() -> Callable[..., None]:
    return write_video


@pytest.fixture
def street(tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Installs a package, as pip would, that brings the `bright` model under the name `street`; its file."""
    site = tmp_path / "site-packages"
    info = site / "streetmodels-1.2.dist-info"
    info.mkdir(parents=True)
    for file in model_path.parent.iterdir():
        shutil.copyfile(file, site / file.name)
    (site / "streetmodels.py").write_text(
        "from pathlib import Path\n\nSTREET = Path(__file__).with_name('bright.onnx')\nGONE = STREET.parent / 'gone'\n"
    )
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: streetmodels\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[edgerpn.models]\nstreet = streetmodels:STREET\ngone = streetmodels:GONE\n"
        "nameless = streetmodels:NOTHING\nwrong = streetmodels:Path\n"
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    importlib.invalidate_caches()
    yield site / "bright.onnx"
    sys.modules.pop("streetmodels", None)


@pytest.fixture(scope="session")
def standin() -> ModuleType:
    return tensorrt_standin


@pytest.fixture
def bench(standin: ModuleType) -> Any:
    """A stand-in device and library, and backends on them: the stand-in's `Bench`."""
    return standin.Bench()


@pytest.fixture
def painted(paint: Callable[..., Image]) -> Image:
    """Nine frames (9, 96, 160, 3), each with another box and count."""
    return np.stack([paint(96, 160, box=(5 + i, 10, 60 + i, 70), count=i % 5) for i in range(9)])


@pytest.fixture(scope="session")
def make_engine() -> MakeModel:
    """Writes an engine file that the stand-in runs, its manifest, and the ONNX file that it comes from."""
    return write_engine


def write_engine(
    folder: Path,
    *,
    batch: int | None = None,
    profile: tuple[int, int, int] = (1, 2, 4),
    color_order: Literal["BGR", "BGRx"] = "BGR",
    is_described: bool = False,
    class_names: tuple[str, ...] = (),
    **spec: Any,
) -> Path:
    """Writes `bright.engine` (the stand-in's engines are ONNX files) and `source.onnx`; `spec` changes EngineSpec."""
    onnx_path = write_model(
        folder,
        batch=batch,
        has_sidecar=False,
        has_metadata=False,
        color_order=color_order,
        is_described=is_described,
        class_names=class_names,
    ).rename(folder / "source.onnx")
    path = folder / "bright.engine"
    path.write_bytes(onnx_path.read_bytes())
    sizes = profile if batch is None else (batch, batch, batch)
    values: dict[str, Any] = {
        "library": "tensorrt", "library_version": "10.3.0.26", "compute_capabilities": ("8.7",),
        "platform": this_platform(), "build_s": 1.0,
        "profile": ProfileSpec(min_batch=sizes[0], opt_batch=sizes[1], max_batch=sizes[2]), **spec,
    }  # fmt: skip
    manifest = make_manifest(
        batch=batch, source_hw=None, color_order=color_order, is_described=is_described, class_names=class_names
    ).replace(
        kind="engine",
        target="tensorrt",
        provenance=Provenance(
            created="2026-01-01T00:00:00Z", checkpoint_sha256="0" * 64, onnx_sha256=files.sha256(onnx_path)
        ),
        engine=EngineSpec(**values),
    )
    manifests.write(manifest, path)
    return path


def paint_frame(
    height: int = 192, width: int = 320, *, box: tuple[int, int, int, int] = (40, 40, 120, 120), count: int = 1
) -> Image:
    """A frame with one green box (x1, y1, x2, y2), for which the model counts `count` proposals."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[..., 0] = 125 + 10 * count if count else 60
    x1, y1, x2, y2 = box
    frame[y1:y2, x1:x2, 1] = 255
    return frame


def write_video(path: Path, *, num_frames: int, height: int = 192, width: int = 320) -> None:
    """A lossless video whose frame i holds a box at x = 4 i and i % 4 proposals."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 30000 / 1001, (width, height))
    assert writer.isOpened()
    for index in range(num_frames):
        left = 4 * index % (width - 80)
        writer.write(paint_frame(height, width, box=(left, 40, left + 80, 120), count=index % 4))
    writer.release()


def write_model(
    folder: Path,
    *,
    batch: int | None = 1,
    source_hw: tuple[int, int] | None = None,
    has_sidecar: bool = True,
    has_metadata: bool = True,
    graph_rows: int = NUM_PROPOSALS,
    color_order: Literal["BGR", "BGRx"] = "BGR",
    is_described: bool = False,
    class_names: tuple[str, ...] = (),
) -> Path:
    """Writes `bright.onnx` and what describes it.

    `graph_rows` other than K makes graph and manifest disagree. With `is_described` box i has the embedding
    `ANGLES[i]`, and features of one row and one column with the same values. With `class_names` box i has the label
    `LABELS[i]`, and as class score its score.
    """
    manifest = make_manifest(
        batch=batch,
        source_hw=source_hw,
        color_order=color_order,
        is_described=is_described,
        class_names=class_names,
    )
    graph = _bright_graph(batch, manifest.input.frame_shape, graph_rows)
    if class_names:
        graph.node.append(helper.make_node("Cast", ["is_valid"], ["is_valid_int"], to=TensorProto.INT32))
        graph.node.append(helper.make_node("Mul", ["is_valid_int", "classes"], ["labels"]))
        graph.initializer.append(numpy_helper.from_array(LABELS[None], "classes"))
        graph.node.append(helper.make_node("Identity", ["scores"], ["class_scores"]))
        for name, kind in (("labels", TensorProto.INT32), ("class_scores", TensorProto.FLOAT)):
            shape = ["N" if batch is None else batch, graph_rows]
            graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    if is_described:
        graph.node.append(helper.make_node("Mul", ["is_valid_rows", "angles"], ["embeddings"]))
        graph.initializer.append(numpy_helper.from_array(ANGLES[None], "angles"))
        graph.node.append(helper.make_node("Unsqueeze", ["embeddings", "cells"], ["features"]))
        graph.initializer.append(numpy_helper.from_array(np.array([3, 4]), "cells"))
        shape = ["N" if batch is None else batch, graph_rows, 2]
        for name, sizes in (("embeddings", shape), ("features", [*shape, 1, 1])):
            graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    if has_metadata:
        model.metadata_props.add(key=manifests.METADATA_KEY, value=json.dumps(settings.to_dict(manifest)))
    onnx.checker.check_model(model)
    path = folder / "bright.onnx"
    onnx.save(model, str(path))
    if has_sidecar:
        manifests.write(manifest, path)
    return path


ANGLES = np.stack([np.cos(np.arange(NUM_PROPOSALS)), np.sin(np.arange(NUM_PROPOSALS))], axis=1).astype(np.float32)
"""(K, 2) embeddings of the boxes of a described model."""

LABELS = (np.arange(NUM_PROPOSALS) % 2).astype(np.int32)
"""(K,) labels of the boxes of a model with classes."""

NEW_NAMES = {"frames": "images", "boxes": "output_0", "scores": "output_1", "count": "output_2"}
"""Names of the graph's tensors after `rename_tensors`."""


def rename_tensors(path: Path, target: Path) -> None:
    """Copies a graph with `NEW_NAMES`, as a converter writes it."""
    model = onnx.load_model_from_string(path.read_bytes())
    for node in model.graph.node:
        node.input[:] = [NEW_NAMES.get(name, name) for name in node.input]
        node.output[:] = [NEW_NAMES.get(name, name) for name in node.output]
    for value in (*model.graph.input, *model.graph.output):
        value.name = NEW_NAMES.get(value.name, value.name)
    target.write_bytes(model.SerializeToString())


def rename_in_manifest(manifest: Manifest) -> Manifest:
    """Returns the manifest of a graph after `rename_tensors`."""
    outputs = [dataclasses.replace(spec, name=NEW_NAMES[spec.name]) for spec in manifest.outputs]
    return manifest.replace(
        input=dataclasses.replace(manifest.input, name=NEW_NAMES[manifest.input.name]), outputs=tuple(outputs)
    )


def make_manifest(
    *,
    batch: int | None,
    source_hw: tuple[int, int] | None,
    color_order: Literal["BGR", "BGRx"] = "BGR",
    is_described: bool = False,
    class_names: tuple[str, ...] = (),
) -> Manifest:
    """The manifest of a `bright` model."""
    further = manifests.more_outputs(
        NUM_PROPOSALS,
        has_classes=bool(class_names),
        embedding_shape=(2,) if is_described else None,
        feature_shape=(2, 1, 1) if is_described else None,
    )
    return Manifest(
        schema=manifests.SCHEMA_MORE_OUTPUTS if further else manifests.SCHEMA,
        name="bright",
        target="onnxruntime",
        opset=17,
        backbone="none",
        input=InputSpec(
            color_order=color_order,
            batch=batch,
            network_hw=NETWORK_HW,
            source_hw=source_hw,
            mean_bgr=(0.0, 0.0, 0.0),
            std_bgr=(1.0, 1.0, 1.0),
        ),
        outputs=(*manifests.standard_outputs(NUM_PROPOSALS), *further),
        class_names=class_names,
        anchors=AnchorSpec(strides_px=(8,), sizes_px=((32.0,),), ratios_hw=(1.0,)),
        proposals=ProposalSpec(
            num_proposals=NUM_PROPOSALS,
            pre_nms=10,
            nms="standard",
            nms_iou=0.7,
            nms_scope="all",
            score_threshold=0.0,
            min_size_px=0.0,
        ),
        provenance=Provenance(created="2026-01-01T00:00:00Z", checkpoint_sha256="0" * 64),
    )


def _bright_graph(batch: int | None, frame_shape: tuple[int, int, int], rows: int) -> onnx.GraphProto:
    n: int | str = "N" if batch is None else batch
    ranks = np.arange(rows, dtype=np.float32)
    shrink = ranks[None, :, None] * np.array([1, 1, -1, -1], np.float32)
    constants = {
        "blue": np.array(0), "green": np.array(1), "level": np.array(180, np.float32),
        "base": np.array(120, np.float32), "ten": np.array(10, np.float32), "zero": np.array(0, np.float32),
        "most": np.array(rows, np.float32), "one": np.array(1, np.float32), "ranks": ranks[None], "shrink": shrink,
        "grades": np.linspace(0.9, 0.3, rows, dtype=np.float32)[None], "last": np.array([1]), "middle": np.array([1]),
        "end2": np.array([2]),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Gather", ["frames", "green"], ["g8"], axis=3),
        node("Cast", ["g8"], ["g"], to=TensorProto.FLOAT),
        node("Greater", ["g", "level"], ["bright_bool"]),
        node("Cast", ["bright_bool"], ["bright"], to=TensorProto.FLOAT),
        node("ReduceMax", ["bright"], ["by_row"], axes=[2], keepdims=0),
        node("ReduceMax", ["bright"], ["by_column"], axes=[1], keepdims=0),
        *_edge_nodes("by_column", "x"),
        *_edge_nodes("by_row", "y"),
        node("Concat", ["x_first", "y_first", "x_end", "y_end"], ["box"], axis=1),
        node("Unsqueeze", ["box", "middle"], ["box_rows"]),
        node("Add", ["box_rows", "shrink"], ["all_boxes"]),
        node("Gather", ["frames", "blue"], ["b8"], axis=3),
        node("Cast", ["b8"], ["b"], to=TensorProto.FLOAT),
        node("ReduceMax", ["b"], ["peak"], axes=[1, 2], keepdims=0),
        node("Sub", ["peak", "base"], ["over"]),
        node("Div", ["over", "ten"], ["tens"]),
        node("Floor", ["tens"], ["whole"]),
        node("Clip", ["whole", "zero", "most"], ["count_float"]),
        node("Cast", ["count_float"], ["count"], to=TensorProto.INT32),
        node("Unsqueeze", ["count_float", "last"], ["count_column"]),
        node("Less", ["ranks", "count_column"], ["is_valid_bool"]),
        node("Cast", ["is_valid_bool"], ["is_valid"], to=TensorProto.FLOAT),
        node("Mul", ["grades", "is_valid"], ["scores"]),
        node("Unsqueeze", ["is_valid", "end2"], ["is_valid_rows"]),
        node("Mul", ["all_boxes", "is_valid_rows"], ["boxes"]),
    ]
    info = helper.make_tensor_value_info
    return helper.make_graph(
        nodes,
        "bright",
        [info("frames", TensorProto.UINT8, [n, *frame_shape])],
        [
            info("boxes", TensorProto.FLOAT, [n, rows, 4]),
            info("scores", TensorProto.FLOAT, [n, rows]),
            info("count", TensorProto.INT32, [n]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )


def _edge_nodes(profile: str, axis_name: str) -> list[onnx.NodeProto]:
    """First bright position, and the one after the last, along one axis; both (N, 1) float32."""
    node = helper.make_node
    first, last = f"{axis_name}_first", f"{axis_name}_last"
    return [
        node("ArgMax", [profile], [f"{first}_int"], axis=1, keepdims=1),
        node("Cast", [f"{first}_int"], [first], to=TensorProto.FLOAT),
        node("ArgMax", [profile], [f"{last}_int"], axis=1, keepdims=1, select_last_index=1),
        node("Cast", [f"{last}_int"], [last], to=TensorProto.FLOAT),
        node("Add", [last, "one"], [f"{axis_name}_end"]),
    ]
