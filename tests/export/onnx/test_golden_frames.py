"""Golden frames: the two photographs that change least, and the model's proposals for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from edgerpn import golden
from edgerpn.export.export_config import ExportConfig
from edgerpn.export.onnx.export import _self_test, export_onnx, make_golden
from edgerpn.export.photographs import read_photograph
from edgerpn.export.precision import calibration
from edgerpn.letterbox import letterbox
from edgerpn.runtime.backends.onnxruntime import OnnxRuntimeBackend
from edgerpn.train.checkpoint import load_checkpoint, save_checkpoint

GetExport = Callable[[str], Any]


def frames_of(files: list[Path], hw: tuple[int, int]) -> list[np.ndarray]:
    pictures = [cv2.imread(str(file)) for file in files]
    return [letterbox(picture.shape[:2], hw).apply(picture, cv2.resize) for picture in pictures]


def test_golden_frames_are_two_that_change_least_and_pass_their_own_test(
    exported: GetExport, photo_files: list[Path], tmp_path: Path
) -> None:
    made = exported("standard")
    frames = frames_of(photo_files, made.network_hw)
    backend = OnnxRuntimeBackend(made.file)
    chosen = make_golden(backend.infer, frames)
    assert (len(chosen.frames), chosen.boxes.shape, chosen.scores.shape) == (2, (2, 50, 4), (2, 50))
    assert all(any(np.array_equal(frame, given) for given in frames) for frame in chosen.frames)
    for row, frame in enumerate(chosen.frames):
        boxes, scores, count = backend.infer(frame[None])[:3]
        np.testing.assert_array_equal(boxes[0], chosen.boxes[row])
        np.testing.assert_array_equal(scores[0], chosen.scores[row])
        assert count[0] == chosen.count[row]
    spec = golden.write(chosen, tmp_path / "model.onnx")
    manifest = backend.manifest.replace(golden=spec)
    read = golden.read(tmp_path / "model.onnx", manifest)
    golden.compare(read, backend.infer(read.frames), manifest, where="here")


def test_a_frame_without_proposals_is_no_golden_frame(exported: GetExport, peaks_frames: dict[str, np.ndarray]) -> None:
    backend = OnnxRuntimeBackend(exported("peaks-standard").file)
    chosen = make_golden(backend.infer, [peaks_frames[name] for name in ("zero", "many", "one")])
    # The model finds nothing on the first, one object on the last, and ten on the one that stays.
    assert chosen.count.tolist() == [10]
    empty = make_golden(backend.infer, [peaks_frames["zero"]])
    assert empty.count.tolist() == [0]
    lines: list[str] = []
    assert _self_test(exported("peaks-standard").file, chosen, ExportConfig(), lines.append)
    assert not _self_test(exported("peaks-standard").file, empty, ExportConfig(), lines.append)
    assert lines == ["warning: no golden frames: the graph proposes nothing on them, so they would prove nothing"]
    with pytest.raises(ValueError, match="frames: expected at least one"):
        make_golden(backend.infer, [])


def test_the_photographs_of_an_export_are_turned_as_those_of_the_training(
    checkpoints: dict[str, Path], photo_files: list[Path], tmp_path: Path
) -> None:
    turned = Image.Exif()
    turned[0x112] = 6
    Image.open(photo_files[3]).save(tmp_path / "turned.jpg", exif=turned)  # stored upright, wide as it is read
    trained = load_checkpoint(checkpoints["pyramid"])
    data = dataclasses.replace(trained.settings.data, exif="apply")
    settings = dataclasses.replace(trained.settings, data=data)
    save_checkpoint(dataclasses.replace(trained, settings=settings), tmp_path / "best.pt")
    manifest = export_onnx(tmp_path / "best.pt", tmp_path / "model.onnx", images=tmp_path)
    expected = read_photograph(tmp_path / "turned.jpg", manifest.input.frame_shape, "apply")
    (frame,) = golden.read(tmp_path / "model.onnx", manifest).frames
    np.testing.assert_array_equal(frame, expected)
    (calibrated,) = calibration.frames([tmp_path / "turned.jpg"], manifest.input)
    np.testing.assert_array_equal(calibrated, expected)
