"""The loaded model: its inputs, its results, and the messages of refusals."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import pytest

from edgerpn import manifest as manifests
from edgerpn.errors import (
    ArtifactChangedError,
    ArtifactMismatchError,
    EngineLoadError,
    InferenceError,
    InputError,
    ManifestError,
    ManifestVersionError,
    StreamOpenError,
)
from edgerpn.proposals import Outputs
from edgerpn.runtime import Model, load, onnx_session
from edgerpn.runtime.backends.contract import check_outputs
from edgerpn.runtime.backends.onnxruntime import OnnxRuntimeBackend
from tests.support.models import ANGLES, rename_in_manifest, rename_tensors
from tests.support.web_server import Answer, WebServer, picture

Image = npt.NDArray[np.uint8]
Paint = Callable[..., Image]
MakeModel = Callable[..., Path]


@pytest.fixture(scope="module")
def model(model_path: Path) -> Model:
    return load(model_path, threads=1)


@pytest.mark.parametrize("count", [0, 1, 10])
def test_as_many_proposals_as_the_graph_counts(model: Model, paint: Paint, count: int) -> None:
    proposals = model(paint(count=count))
    assert len(proposals) == count
    assert (np.diff(proposals.scores) <= 0).all()


def test_boxes_come_back_in_pixels_of_a_frame_twice_the_network_size(model: Model, paint: Paint) -> None:
    proposals = model(paint(192, 320, box=(40, 60, 120, 140)))
    np.testing.assert_allclose(proposals.boxes, [[40, 60, 120, 140]], atol=2.1)


def test_boxes_come_back_in_pixels_of_a_frame_with_another_aspect(model: Model, paint: Paint) -> None:
    # 300x240 into 96x160: scale 0.32, content 96x77, the right half is padding.
    proposals = model(paint(300, 240, box=(50, 100, 200, 250)))
    np.testing.assert_allclose(proposals.boxes, [[50, 100, 200, 250]], atol=3.2)


def test_a_frame_of_the_network_size_needs_no_scaling(model: Model, paint: Paint) -> None:
    np.testing.assert_array_equal(model(paint(96, 160, box=(10, 20, 50, 60))).boxes, [[10, 20, 50, 60]])


def test_boxes_without_area_after_clipping_are_dropped(model: Model) -> None:
    # A frame 96x40 leaves the right 120 columns to the padding, where the lower boxes of this one row lie flat.
    frame = np.zeros((96, 40, 3), np.uint8)
    frame[..., 0] = 225
    frame[10:14, 30:40, 1] = 255
    proposals = model(frame)
    # Row k shrinks the box by k on each side: of height 4, rows 0 and 1 have area, row 2 is flat, later ones inverted.
    np.testing.assert_array_equal(proposals.boxes, [[30, 10, 40, 14], [31, 11, 39, 13]])


def unaligned(frame: Image) -> Image:
    return np.frombuffer(b"\0" + frame.tobytes(), np.uint8, offset=1).reshape(frame.shape)


LAYOUTS: dict[str, Callable[[Image], Image]] = {
    "rows from the last to the first": lambda frame: frame[::-1].copy()[::-1],
    "columns from the last to the first": lambda frame: frame[:, ::-1].copy()[:, ::-1],
    "channels from the last to the first": lambda frame: frame[..., ::-1].copy()[..., ::-1],
    "every second pixel": lambda frame: np.repeat(np.repeat(frame, 2, axis=0), 2, axis=1)[::2, ::2],
    "Fortran order": lambda frame: np.asfortranarray(frame),
    "channels first in memory": lambda frame: frame.transpose(2, 0, 1).copy().transpose(1, 2, 0),
    "columns before rows in memory": lambda frame: frame.transpose(1, 0, 2).copy().transpose(1, 0, 2),
    "three of four channels": lambda frame: np.dstack([frame, frame[..., :1]])[..., :3],
    "a window of a larger picture": lambda frame: np.pad(frame, ((3, 5), (7, 9), (0, 0)))[3:-5, 7:-9],
    "an odd address, read-only": unaligned,
    "one row for all": lambda frame: np.broadcast_to(frame[60], frame.shape),
}


@pytest.mark.parametrize("source_hw", [None, (192, 320)], ids=["letterboxed", "as it is"])
def test_frames_of_every_memory_layout_give_the_proposals_of_a_plain_copy(
    make_model: MakeModel, tmp_path: Path, paint: Paint, source_hw: tuple[int, int] | None
) -> None:
    frame = paint(192, 320, box=(40, 60, 120, 140), count=4)
    with load(make_model(tmp_path, source_hw=source_hw), threads=1) as model:
        for name, layout in LAYOUTS.items():
            view = layout(frame)
            plain = view.copy(order="C")
            expected = model(plain)
            assert len(expected) == 4, name
            for found in (model(view), *model.batch([view, plain])):
                np.testing.assert_array_equal(found.boxes, expected.boxes, err_msg=name)
                np.testing.assert_array_equal(found.scores, expected.scores, err_msg=name)
            np.testing.assert_array_equal(view, plain, err_msg=name)


def test_a_read_only_frame_is_fine_and_stays_unchanged(model: Model, paint: Paint) -> None:
    frame = paint()
    frame.flags.writeable = False
    before = frame.copy()
    model(frame)
    np.testing.assert_array_equal(frame, before)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ("frame.jpg", "expected a NumPy array of shape .H, W, 3., got str"),
        (None, "got NoneType"),
        (np.zeros((4, 4, 3), np.float32), "expected dtype uint8 .* got float32"),
        (np.zeros((4, 4), np.uint8), r"got \(4, 4\).*COLOR_GRAY2BGR"),
        (np.zeros((4, 4, 4), np.uint8), r"got \(4, 4, 4\).*alpha"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"got \(1, 4, 4, 3\).*batch"),
        (np.zeros((0, 4, 3), np.uint8), r"got \(0, 4, 3\)"),
    ],
)
def test_values_that_are_not_frames_are_refused_by_name(model: Model, frame: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model(frame)


@pytest.mark.parametrize("batch", [1, 2, None])
def test_a_batch_gives_what_its_frames_give_alone(
    make_model: MakeModel, tmp_path: Path, paint: Paint, batch: int
) -> None:
    frames = [paint(192, 320, count=3), paint(96, 160, box=(5, 6, 70, 80), count=0), paint(300, 240, count=7)]
    with load(make_model(tmp_path, batch=batch), threads=1) as model:
        together = model.batch(frames)
        alone = [model(frame) for frame in frames]
    assert [len(proposals) for proposals in together] == [3, 0, 7]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)


def test_an_empty_batch_gives_nothing(model: Model) -> None:
    assert model.batch([]) == []


def test_a_fixed_source_size_takes_frames_as_they_are(make_model: MakeModel, tmp_path: Path, paint: Paint) -> None:
    with load(make_model(tmp_path, source_hw=(192, 320)), threads=1) as model:
        np.testing.assert_array_equal(model(paint(192, 320, box=(41, 61, 121, 141))).boxes, [[41, 61, 121, 141]])
        with pytest.raises(InputError, match=r"192x320 .*got 100x200.*--source-size 100x200"):
            model(paint(100, 200))


def test_boxes_in_the_padding_of_a_frame_that_was_fitted_are_dropped(make_model: MakeModel, tmp_path: Path) -> None:
    frame = np.zeros((96, 40, 3), np.uint8)  # as above, the right 120 columns are padding
    frame[..., 0] = 225
    frame[10:14, 30:40, 1] = 255
    with load(make_model(tmp_path, source_hw=(96, 160)), threads=1) as model:
        (proposals,) = model.batch_fitted([frame])
    np.testing.assert_array_equal(proposals.boxes, [[30, 10, 40, 14], [31, 11, 39, 13]])
    assert len(proposals.scores) == 2


def test_frames_that_would_be_fitted_are_refused_by_name_too(
    make_model: MakeModel, tmp_path: Path, paint: Paint
) -> None:
    frame = paint(96, 160)
    wrong: tuple[tuple[Any, str], ...] = (
        (frame / 255, "expected dtype uint8 .* got float64"),
        (frame.tolist(), "got list"),
    )
    with load(make_model(tmp_path, source_hw=(192, 320)), threads=1) as model:
        for value, message in wrong:
            with pytest.raises(InputError, match=message):
                model.batch_fitted([value])


def test_a_truncated_file_without_a_manifest_has_a_plain_error(make_model: MakeModel, tmp_path: Path) -> None:
    path = make_model(tmp_path, has_sidecar=False)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ManifestError, match=r"bright\.onnx: it is truncated, damaged, or not an ONNX file .* Copy"):
        load(path)


def test_a_model_file_with_something_behind_it_is_damaged(make_model: MakeModel, tmp_path: Path) -> None:
    path = make_model(tmp_path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(
        ArtifactMismatchError, match=r"bright\.onnx: truncated or damaged: .*bright\.json together again"
    ):
        load(path, verify=False)


@pytest.mark.parametrize("has_sidecar", [True, False])
def test_a_model_that_another_program_changed_runs_only_unverified(
    make_model: MakeModel, tmp_path: Path, paint: Paint, caplog: pytest.LogCaptureFixture, has_sidecar: bool
) -> None:
    path = make_model(tmp_path)
    with load(path, threads=1) as model:
        expected = model(paint(count=3))
    write_changed(path, has_sidecar=has_sidecar)
    with pytest.raises(ArtifactChangedError, match=r"bright\.onnx: changed since export: .*--reseal"):
        load(path)
    with load(path, threads=1, verify=False) as model:
        np.testing.assert_array_equal(model(paint(count=3)).boxes, expected.boxes)
    assert "nothing shows that its proposals are right" in caplog.text


def write_changed(path: Path, *, has_sidecar: bool) -> None:
    """Changes a model as another program does, after its manifest was written: beside it, or as a digest inside."""
    proto = onnx.load(path)
    proto.producer_name = "another program"
    if not has_sidecar:
        manifests.manifest_path(path).unlink()
        proto.metadata_props.add(key=manifests.DIGEST_KEY, value="d" * 64)
    onnx.save(proto, path)


def test_even_unverified_the_tensors_must_be_those_of_the_manifest(make_model: MakeModel, tmp_path: Path) -> None:
    path = make_model(tmp_path)
    rename_tensors(path, path)
    with pytest.raises(ArtifactMismatchError, match=r"'frames' as uint8 \[1, 96, 160, 3\].*output_0.*--reseal"):
        load(path, verify=False)


def test_tensors_may_have_the_names_that_the_manifest_gives_them(
    make_model: MakeModel, tmp_path: Path, paint: Paint
) -> None:
    path = make_model(tmp_path)
    with load(path, threads=1) as model:
        expected, manifest = model(paint(count=3)), model.manifest
    rename_tensors(path, path)
    manifests.write(rename_in_manifest(manifest), path)
    with load(path, threads=1) as model:
        np.testing.assert_array_equal(model(paint(count=3)).boxes, expected.boxes)
        np.testing.assert_array_equal(model(paint(count=3)).scores, expected.scores)


def test_an_engine_is_never_run_unverified(tmp_path: Path) -> None:
    with pytest.raises(EngineLoadError, match=r"an engine runs under the manifest of its build only"):
        load(tmp_path / "model.engine", verify=False)


def test_the_manifest_inside_serves_when_the_sidecar_is_missing(make_model: MakeModel, tmp_path: Path) -> None:
    with load(make_model(tmp_path, has_sidecar=False), threads=1) as model:
        assert model.manifest.name == "bright"
        assert model.manifest.input.network_hw == (96, 160)


def test_a_model_without_any_manifest_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"bright\.json is not beside it.*edgerpn export"):
        load(make_model(tmp_path, has_sidecar=False, has_metadata=False))


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"absent\.onnx: no such file"):
        load(tmp_path / "absent.onnx")


def test_an_unknown_manifest_schema_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    path = make_model(tmp_path)
    sidecar = manifests.manifest_path(path)
    sidecar.write_text(sidecar.read_text().replace(f'"schema": {manifests.SCHEMA}', '"schema": 99'))
    with pytest.raises(ManifestVersionError, match="99"):
        load(path)


def test_a_graph_that_is_not_the_manifests_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMismatchError, match=r"'boxes' as float32 \[1, 10, 4\]"):
        load(make_model(tmp_path, graph_rows=7))


def test_a_file_that_is_not_onnx_is_a_load_error(make_model: MakeModel, tmp_path: Path) -> None:
    path = make_model(tmp_path)
    path.write_bytes(b"not a graph")
    manifests.write(manifests.parse(manifests.manifest_path(path).read_text(), source="test"), path)
    with pytest.raises(EngineLoadError, match=r"ONNX Runtime .* cannot load it"):
        load(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("best.pt", r"known here: \.onnx, \.engine, \.plan\. Export it first"),
        ("model.tflite", r"'\.tflite'; known here: \.onnx, \.engine, \.plan\."),
        ("folder/model", "ends? in ''"),
    ],
)
def test_files_that_no_backend_runs_are_refused_by_suffix(name: str, message: str) -> None:
    with pytest.raises(EngineLoadError, match=message):
        load(name)


def test_an_unknown_provider_lists_the_known_ones(model_path: Path) -> None:
    with pytest.raises(EngineLoadError, match=r"'abacus' is not in this build.*CPUExecutionProvider"):
        load(model_path, providers=["abacus"])


def test_one_provider_without_a_list_is_a_mistake_of_the_caller(model_path: Path) -> None:
    with pytest.raises(TypeError, match=r"providers: expected a list of names, such as \['cpu'\]"):
        load(model_path, providers="cpu")


def test_providers_have_short_names_and_the_backend_names_the_device(model_path: Path) -> None:
    with load(model_path, providers=["cpu"], threads=1) as model:
        assert model.backend.name.startswith("ONNX Runtime ")
        assert model.backend.name.endswith("(CPU)")
        assert model.backend.is_cpu


def test_threads_below_one_are_a_mistake_of_the_caller(model_path: Path) -> None:
    with pytest.raises(ValueError, match="threads: expected at least 1, got 0"):
        load(model_path, threads=0)


def test_a_closed_model_says_so(model_path: Path, paint: Paint) -> None:
    model = load(os.fspath(model_path), threads=1)
    model.close()
    model.close()
    with pytest.raises(RuntimeError, match="closed"):
        model(paint())


def test_the_backend_checks_its_input_against_the_manifest(model: Model) -> None:
    with pytest.raises(InputError, match=r"expected shape \(N, 96, 160, 3\) with N >= 1, got \(1, 90, 160, 3\)"):
        model.backend.infer(np.zeros((1, 90, 160, 3), np.uint8))
    with pytest.raises(InputError, match="uint8"):
        model.backend.infer(np.zeros((1, 96, 160, 3), np.float32))


def test_outputs_that_break_the_interface_are_an_inference_error() -> None:
    good = Outputs(np.zeros((1, 5, 4), np.float32), np.zeros((1, 5), np.float32), np.array([5], np.int32))
    shapes: dict[str, tuple[int, ...]] = {"boxes": (5, 4), "scores": (5,), "count": ()}
    check_outputs(good, 1, shapes)
    with pytest.raises(InferenceError, match=r"counts \[6\] proposals, expected 0 to 5"):
        check_outputs(good._replace(count=np.array([6], np.int32)), 1, shapes)
    with pytest.raises(InferenceError, match="shapes"):
        check_outputs(good._replace(boxes=good.boxes[:, :4]), 1, shapes)
    described = good._replace(embeddings=np.full((1, 5, 2), 1e30, np.float32))
    check_outputs(described, 1, shapes)
    for role, value in (("boxes", np.nan), ("scores", -np.inf), ("embeddings", np.inf)):
        broken = getattr(described, role).copy()
        broken.flat[[1, 3]] = value
        with pytest.raises(InferenceError, match=f"gives 2 of {broken.size} {role} that are not finite numbers"):
            check_outputs(described._replace(**{role: broken}), 1, shapes)
    classed = good._replace(labels=np.array([[0, 1, 2, 0, 0]], np.int32), class_scores=good.scores)
    shapes |= {"labels": (5,), "class_scores": (5,)}
    check_outputs(classed, 1, shapes, num_classes=3)
    with pytest.raises(InferenceError, match="labels are 0 to 2, expected 0 to 1"):
        check_outputs(classed, 1, shapes, num_classes=2)


@pytest.mark.parametrize("batch", [1, 2, None])
def test_bound_inputs_and_outputs_give_the_same_as_plain_ones(
    make_model: MakeModel, tmp_path: Path, paint: Paint, batch: int | None
) -> None:
    backend = OnnxRuntimeBackend(make_model(tmp_path, batch=batch), threads=1)
    frames = np.stack([paint(96, 160, count=i) for i in range(3)])
    plain = backend.infer(frames)
    backend._is_bound = True  # as with a provider on a GPU
    for _ in range(2):
        for one, other in zip(backend.infer(frames).present.values(), plain.present.values(), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    backend.close()


def test_the_log_names_the_running_and_the_requested_provider(
    model_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        load(model_path, providers=[("cpu", {})], threads=1).close()
        load(model_path, threads=1).close()
    first, second = [record.message for record in caplog.records if "runs on" in record.message]
    assert first.endswith("runs on CPU (providers: CPU)")
    assert second.endswith("runs on CPU (providers: default)")


class Started:
    """A session whose first provider is the CPU, as when another one could not be started."""

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_a_provider_that_does_not_start_is_an_error_when_asked_for_and_else_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chosen: list[tuple[str, dict[str, Any]]] = [("CUDAExecutionProvider", {}), ("CPUExecutionProvider", {})]
    with pytest.raises(EngineLoadError, match=r"CUDAExecutionProvider could not be started.*choose cpu alone"):
        onnx_session.running_provider(Path("a.onnx"), Started(), chosen, "1.0", is_asked=True)
    name = onnx_session.running_provider(Path("a.onnx"), Started(), chosen, "1.0", is_asked=False)
    assert name == "CPUExecutionProvider"
    assert "fell back to CPUExecutionProvider" in caplog.text
    # The first one runs, and the second one is missing: also a fallback.
    chosen.insert(0, ("CPUExecutionProvider", {}))
    with pytest.raises(EngineLoadError, match=r"CUDAExecutionProvider could not be started"):
        onnx_session.running_provider(Path("a.onnx"), Started(), chosen, "1.0", is_asked=True)


def test_the_cuda_that_pip_installed_is_loaded_before_a_session(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    library = ModuleType("onnxruntime")
    library.preload_dlls = lambda: sys.stdout.write("Failed to load libcudnn.so.9\n")  # type: ignore[attr-defined]
    with caplog.at_level("INFO"):
        onnx_session.preload_libraries(library, [("CPUExecutionProvider", {})])
        onnx_session.preload_libraries(ModuleType("onnxruntime"), [("CUDAExecutionProvider", {})])
        assert caplog.text == ""
        onnx_session.preload_libraries(library, [("CUDAExecutionProvider", {}), ("CPUExecutionProvider", {})])
    assert "Failed to load libcudnn.so.9" in caplog.text
    assert capsys.readouterr().out == ""


def test_providers_keep_their_order_and_get_options() -> None:
    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    choose = onnx_session.choose_providers
    assert [name for name, _ in choose(None, available)] == available[1:]
    chosen = choose(["tensorrt", ("cuda", {"device_id": 1})], available)
    assert [name for name, _ in chosen] == available
    assert chosen[0][1]["trt_engine_cache_enable"] == "0"
    assert chosen[1][1] == {"device_id": "1"}
    assert [name for name, _ in choose(["cpu"], available)] == ["CPUExecutionProvider"]


def test_a_camera_that_is_not_there_is_an_error_and_not_a_wait(model_path: Path) -> None:
    with load(model_path) as model, pytest.raises(StreamOpenError, match="63: no such camera"):
        next(model.stream(63))


@pytest.mark.parametrize("source", [["a.mp4", "b.mp4"], b"a.mp4", None, cv2.VideoCapture()])
def test_a_source_of_a_wrong_type_is_a_mistake_of_the_caller(model: Model, source: Any) -> None:
    with pytest.raises(TypeError, match=rf"source: expected a text, .* got a {type(source).__name__}; .*StreamRunner"):
        next(model.stream(source))


def test_an_address_of_one_picture_gives_a_stream(model_path: Path) -> None:
    with WebServer({"/snapshot.jpg": Answer(body=picture())}) as server, load(model_path) as model:
        results = list(model.stream(f"{server.url}/snapshot.jpg", max_frames=3))
    assert [result.image.shape for result in results] == [(48, 64, 3)] * 3


def test_embeddings_and_features_come_with_their_boxes(make_model: MakeModel, tmp_path: Path, paint: Paint) -> None:
    with load(make_model(tmp_path, batch=None, is_described=True), threads=1) as model:
        for proposals in (model(paint(96, 160, count=3)), *model.batch([paint(96, 160, count=i) for i in (0, 2)])):
            assert proposals.embeddings is not None
            assert proposals.features is not None
            np.testing.assert_array_equal(proposals.features[..., 0, 0], proposals.embeddings)
            np.testing.assert_array_equal(proposals.embeddings, ANGLES[: len(proposals)])
    with load(make_model(tmp_path), threads=1) as model:
        assert model(paint(96, 160, count=3)).embeddings is None


def test_classes_come_with_their_boxes_and_names(make_model: MakeModel, tmp_path: Path, paint: Paint) -> None:
    file = make_model(tmp_path, batch=None, is_described=True, class_names=("fish", "crab"))
    with load(file, threads=1) as model:
        for proposals in (model(paint(96, 160, count=3)), *model.batch([paint(96, 160, count=i) for i in (0, 2)])):
            assert proposals.class_names == ("fish", "crab")
            assert proposals.names == ("fish", "crab", "fish")[: len(proposals)]
            np.testing.assert_array_equal(proposals.class_scores, proposals.scores)
            np.testing.assert_array_equal(proposals.embeddings, ANGLES[: len(proposals)])
    with load(make_model(tmp_path), threads=1) as model:
        proposals = model(paint(96, 160, count=3))
        assert (proposals.names, proposals.labels, proposals.class_names) == (None, None, ())
