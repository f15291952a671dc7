"""The bundle for Triton: a configuration that Triton's own schema reads, and what a server makes of it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from PIL import Image

from edgerpn import golden, manifest
from edgerpn.errors import ExportError
from edgerpn.export.packages.package import package
from edgerpn.images.decoding import decode_image, read_bytes
from edgerpn.runtime import load
from tests.support.classes import CLASS_NAMES
from tests.support.model_server import Graph, ModelServer
from tests.support.models import MakeModel, paint_frame

EXIF_TURNED = Image.Exif()
EXIF_TURNED[0x112] = 6  # to be turned by a quarter


def read_config(folder: Path) -> Any:
    """The configuration of the one model of a repository, by Triton's schema."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient brings Triton's schema")
    from google.protobuf import text_format

    (file,) = folder.glob("*/config.pbtxt")
    config = text_format.Parse(file.read_text(encoding="utf-8"), schema.ModelConfig())
    assert config.name == file.parent.name
    return config


@pytest.mark.parametrize(
    ("values", "batch", "outputs"),
    [
        ({"batch": None}, 8, {"boxes": [10, 4], "scores": [10], "count": [1]}),
        ({"batch": 1}, 0, {"boxes": [1, 10, 4], "scores": [1, 10], "count": [1]}),
        ({"batch": 3, "color_order": "BGRx"}, 0, {"boxes": [3, 10, 4], "scores": [3, 10], "count": [3]}),
        (
            {"batch": None, "is_described": True, "class_names": CLASS_NAMES},
            8,
            {
                "boxes": [10, 4],
                "scores": [10],
                "count": [1],
                "labels": [10],
                "class_scores": [10],
                "embeddings": [10, 2],
                "features": [10, 2, 1, 1],
            },
        ),
    ],
)
def test_tritons_schema_reads_the_configuration(
    make_packed: MakeModel, tmp_path: Path, values: dict[str, Any], batch: int, outputs: dict[str, list[int]]
) -> None:
    file = make_packed(**values)
    folder = package(file, "triton", tmp_path / "bundle")
    config = read_config(folder)
    described = manifest.read(file)
    frame = [*described.input.frame_shape]
    assert (config.platform, config.max_batch_size) == ("onnxruntime_onnx", batch)
    assert [*config.input[0].dims] == (frame if batch else [values["batch"], *frame])
    assert "data_type: TYPE_UINT8" in str(config.input[0])
    assert {output.name: [*output.dims] for output in config.output} == outputs
    # Only count has no size behind the batch.
    assert [output.name for output in config.output if output.HasField("reshape")] == (["count"] if batch else [])
    assert config.HasField("dynamic_batching") is bool(batch)
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, 0)]
    assert manifest.parse(config.parameters["edgerpn.manifest"].string_value, source="config") == described
    assert [warm.batch_size for warm in config.model_warmup] == ([1, 8] if batch else [1])
    frames = golden.read(file, described).frames
    for warm in config.model_warmup:
        sample = warm.inputs[described.input.name]
        data = (folder / config.name / "warmup" / sample.input_data_file).read_bytes()
        assert len(data) == np.prod(sample.dims)
        assert data[: frames[0].nbytes] == frames[0].tobytes()


def test_a_served_bundle_gives_the_proposals_of_its_model(packed_model: Path, bundles: dict[str, Path]) -> None:
    frame = paint_frame(200, 300, count=5)
    with (
        serve(bundles["triton"], is_grpc=False) as server,
        load(f"{server.url}/bright") as served,
        load(packed_model) as local,
    ):
        assert served.manifest == local.manifest
        np.testing.assert_array_equal(served(frame).boxes, local(frame).boxes)


@contextmanager
def serve(folder: Path, *, is_grpc: bool) -> Iterator[ModelServer]:
    """Serves the graph of a bundle under its configuration."""
    parsed = read_config(folder)
    from google.protobuf.json_format import MessageToDict

    config = MessageToDict(parsed, preserving_proto_field_name=True)
    server = ModelServer({parsed.name: Graph(folder / parsed.name / "1" / "model.onnx", config)}, is_grpc=is_grpc)
    yield server
    server.kill()


def run_client(folder: Path, server: ModelServer, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "client.py"), "--url", server.url.partition("://")[2], *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("values", "exif"),
    [({"batch": None, "class_names": CLASS_NAMES}, "ignore"), ({"batch": 2, "color_order": "BGRx"}, "apply")],
)
def test_the_client_sends_jpegs_and_the_golden_frames(
    make_packed: MakeModel, tmp_path: Path, values: dict[str, Any], exif: Literal["ignore", "apply"]
) -> None:
    file = make_packed(**values)
    described = manifest.read(file)
    manifest.write(described.replace(input=dataclasses.replace(described.input, exif=exif)), file)
    folder = package(file, "triton", tmp_path / "bundle")
    picture, thin = tmp_path / "photo.jpg", tmp_path / "thin.png"
    stored = Image.fromarray(paint_frame(180, 320, box=(40, 40, 200, 150), count=4)[..., ::-1])
    stored.save(picture, exif=EXIF_TURNED)
    assert cv2.imwrite(str(thin), np.zeros((1, 1000, 3), np.uint8))
    with serve(folder, is_grpc=True) as server, load(file) as model:
        done = run_client(folder, server, str(picture), "--top", "3")
        assert done.returncode == 0, done.stderr
        data, header = read_bytes(picture)
        expected = model(decode_image(cv2, data, header, picture, exif=exif)[0])
        found = json.loads(done.stdout)
        assert found["path"] == str(picture)
        np.testing.assert_allclose([one["box"] for one in found["proposals"]], expected.boxes[:3], atol=0.06)
        np.testing.assert_allclose([one["score"] for one in found["proposals"]], expected.scores[:3], atol=1e-4)
        assert [one.get("label") for one in found["proposals"]] == list((expected.names or [None] * 3)[:3])
        assert run_client(folder, server, str(thin)).stdout == json.dumps({"path": str(thin), "proposals": []}) + "\n"
        assert run_client(folder, server, "--smoke").stdout == "the golden frames gave the expected proposals\n"
        with np.load(folder / "smoke.npz") as arrays:
            right: dict[str, Any] = dict(arrays)
        changes = {"boxes": "no counterpart", "labels": "other labels"}
        for name in right.keys() & changes:
            np.savez(folder / "smoke.npz", **{**right, name: right[name] + right[name].dtype.type(9)})
            failed = run_client(folder, server, "--smoke")
            assert (failed.returncode, failed.stdout.splitlines()[0]) == (
                1,
                f"frame 0: 3 of 3 proposals have {changes[name]}",
            )


def test_a_name_that_no_address_can_hold_is_changed(make_packed: MakeModel, tmp_path: Path) -> None:
    file = make_packed(batch=1)
    manifest.write(manifest.read(file).replace(name="größte Muschel/2"), file)
    folder = package(file, "triton", tmp_path / "bundle")
    assert [path.parent.name for path in folder.glob("*/config.pbtxt")] == ["gr-te-Muschel-2"]


def test_int8_for_tensorrt_is_refused(make_packed: MakeModel, tmp_path: Path) -> None:
    file = make_packed(batch=1)
    manifest.write(dataclasses.replace(manifest.read(file), precision="int8", target="tensorrt"), file)
    with pytest.raises(ExportError, match=r"int8 for TensorRT.*export it with --target onnxruntime"):
        package(file, "triton", tmp_path / "bundle")
