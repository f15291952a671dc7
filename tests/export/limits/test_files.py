"""Foreign, damaged and non-ONNX files: the checker reads each, or refuses it with one clear error."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from edgerpn import manifest as manifests
from edgerpn.errors import ArtifactMismatchError, EngineLoadError, ManifestError, ManifestVersionError
from edgerpn.export.limits.check import find_violations
from edgerpn.export.limits.graph import read_onnx
from edgerpn.targets import TargetName

GetExport = Callable[[str], Any]
RTX: TargetName = "tensorrt-rtx"
JETPACK: TargetName = "tensorrt-10.3"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"this is a text, not a model", "cannot be read as ONNX"),
        (b"\x08\x0a", "not an ONNX model: it has no graph"),
        (None, "no such file"),
    ],
)
def test_a_foreign_file_is_one_clear_error(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(EngineLoadError, match=message):
        find_violations(file, RTX)
    with pytest.raises(EngineLoadError, match="this is a folder"):
        find_violations(tmp_path, RTX)


def copy(exported: GetExport, folder: Path) -> Path:
    """An export of ours to damage."""
    source = exported("portable").file
    shutil.copy(source, folder / "model.onnx")
    shutil.copy(source.with_suffix(".json"), folder / "model.json")
    return folder / "model.onnx"


@pytest.mark.parametrize(
    ("damage", "words"), [("truncated", "truncated or damaged"), ("flipped", "changed since export")]
)
def test_a_damaged_copy_of_ours_is_one_clear_error(
    damage: str, words: str, exported: GetExport, tmp_path: Path
) -> None:
    file = copy(exported, tmp_path)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data[: len(data) // 3] if damage == "truncated" else data)
    with pytest.raises(ArtifactMismatchError, match=rf"model\.onnx: {words}.*model\.json"):
        find_violations(file, RTX)
    if damage == "truncated":
        file.with_suffix(".json").unlink()
        with pytest.raises(EngineLoadError, match="cannot be read as ONNX: it is truncated"):
            find_violations(file, RTX)


def test_a_damaged_manifest_is_one_clear_error(exported: GetExport, tmp_path: Path) -> None:
    file = copy(exported, tmp_path)
    sidecar = file.with_suffix(".json")
    text = sidecar.read_text()
    sidecar.write_text(text.replace('"schema": 2', '"schema": 99', 1))
    with pytest.raises(ManifestVersionError, match="manifest schema 99"):
        find_violations(file, RTX)
    sidecar.write_text(text[: len(text) // 2])
    with pytest.raises(ManifestError, match="not a manifest"):
        find_violations(file, RTX)
    sidecar.unlink()
    # The copy inside the file does as well.
    assert read_onnx(file)[1] is not None


def test_a_foreign_model_is_checked_without_a_manifest(tmp_path: Path) -> None:
    file = tmp_path / "theirs.onnx"
    node = helper.make_node("NonZero", ["x"], ["y"])
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])]
    values.append(helper.make_tensor_value_info("y", TensorProto.INT64, [2, None]))
    theirs = helper.make_graph([node], "graph", values[:1], values[1:])
    onnx.save(helper.make_model(theirs, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)
    # A foreign file beside it is not an error.
    manifests.manifest_path(file).write_text('{"a": 1}')
    assert read_onnx(file)[1] is None
    assert [violation.rule for violation in find_violations(file, RTX)] == ["varying-shape"]


def test_weights_in_other_files_are_named(exported: GetExport, tmp_path: Path) -> None:
    proto, manifest = read_onnx(exported("portable").file)
    assert manifest is not None
    onnx.save(proto, tmp_path / "model.onnx", save_as_external_data=True, size_threshold=64)
    without = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    (found,) = find_violations(without, "onnxruntime", manifest)
    assert (found.severity, found.rule) == ("error", "external-data")
    (foreign,) = find_violations(without, JETPACK)
    assert (foreign.severity, foreign.rule) == ("warning", "external-data")
