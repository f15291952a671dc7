from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edgerpn import files, manifest
from edgerpn.errors import ArtifactMismatchError, ManifestError, ManifestVersionError
from edgerpn.manifest import AnchorSpec, InputSpec, Manifest, ProposalSpec, Provenance, RecallSpec


def example(**changes: Any) -> Manifest:
    whole = Manifest(
        name="edge",
        target="onnxruntime",
        opset=18,
        backbone="edge",
        input=InputSpec(network_hw=(384, 640), mean_bgr=(103.53, 116.28, 123.675), std_bgr=(57.375, 57.12, 58.395)),
        outputs=manifest.standard_outputs(100),
        anchors=AnchorSpec(strides_px=(8, 16), sizes_px=((32.0,), (64.0, 90.5)), ratios_hw=(0.5, 1.0, 2.0)),
        proposals=ProposalSpec(
            num_proposals=100,
            pre_nms=1000,
            nms="standard",
            nms_iou=0.7,
            nms_scope="level",
            score_threshold=0.0,
            min_size_px=0.0,
        ),
        provenance=Provenance(
            created="2026-01-02T03:04:05Z", checkpoint_sha256="c" * 64, versions=(("torch", "2.13.0"),)
        ),
        recall=RecallSpec(data_sha256="d" * 64, num_images=3, metrics=(("AR@100", 0.5),)),
    )
    return whole.replace(**changes)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"a graph")
    manifest.write(example(), path)
    return path


def edit(artifact: Path, **changes: Any) -> None:
    """Changes the manifest and removes its digest, so that only the contents count."""
    path = manifest.manifest_path(artifact)
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    del values["digest"]
    path.write_text(json.dumps(values), encoding="utf-8")


def test_a_written_manifest_reads_back_with_the_hash_of_its_artifact(artifact: Path) -> None:
    found = manifest.read(artifact)
    digest = files.sha256(artifact)
    assert found.provenance.artifact_sha256 == digest
    assert found.provenance.onnx_sha256 == digest
    provenance = dataclasses.replace(found.provenance, artifact_sha256=None, onnx_sha256=None, artifact_bytes=None)
    assert found.provenance.artifact_bytes == len(b"a graph")
    assert found.replace(provenance=provenance) == example()


def test_an_engine_keeps_the_hash_of_the_onnx_file_that_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(b"a plan")
    provenance = dataclasses.replace(example().provenance, onnx_sha256="e" * 64)
    manifest.write(example(kind="engine", provenance=provenance), path)
    found = manifest.read(path).provenance
    assert (found.artifact_sha256, found.onnx_sha256) == (files.sha256(path), "e" * 64)


@pytest.mark.parametrize("batch", [None, 1, 8])
@pytest.mark.parametrize("source_hw", [None, (1080, 1920)])
def test_optional_values_survive_the_way_through_json(batch: int | None, source_hw: tuple[int, int] | None) -> None:
    before = example(input=dataclasses.replace(example().input, batch=batch, source_hw=source_hw), recall=None)
    after = manifest.parse(before.to_json(), source="test")
    assert after == before
    assert after.input.frame_hw == (source_hw or (384, 640))


def test_the_manifest_lies_beside_its_artifact() -> None:
    assert manifest.manifest_path("a/model.onnx") == Path("a/model.json")
    assert manifest.manifest_path("a/v1.2.engine") == Path("a/v1.2.engine.json")


def test_an_artifact_that_was_changed_is_refused(artifact: Path) -> None:
    artifact.write_bytes(b"another graph")
    with pytest.raises(ArtifactMismatchError, match=r"model\.onnx: this is not the file that model\.json describes"):
        manifest.read(artifact)


def test_a_truncated_artifact_is_refused(artifact: Path) -> None:
    artifact.write_bytes(artifact.read_bytes()[:-1])
    with pytest.raises(ArtifactMismatchError, match=r"model\.onnx: truncated, .*: 6 bytes, expected 7\. Copy"):
        manifest.read(artifact)


def test_an_artifact_with_a_flipped_bit_is_refused(artifact: Path) -> None:
    artifact.write_bytes(b"b graph")
    with pytest.raises(ArtifactMismatchError, match=r"model\.onnx: damaged or changed: the size .*bytes are not"):
        manifest.read(artifact)


def test_a_manifest_without_a_size_is_read_too(artifact: Path) -> None:
    path = manifest.manifest_path(artifact)
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["provenance"]["artifact_bytes"], values["digest"]
    path.write_text(json.dumps(values), encoding="utf-8")
    assert manifest.read(artifact).provenance.artifact_bytes is None
    artifact.write_bytes(b"a gra")
    with pytest.raises(ArtifactMismatchError, match=r"this is not the file that model\.json describes: sha256"):
        manifest.read(artifact)


def test_a_manifest_without_a_hash_vouches_for_nothing(artifact: Path) -> None:
    manifest.manifest_path(artifact).write_text(example().to_json(), encoding="utf-8")
    with pytest.raises(ArtifactMismatchError, match="expected none"):
        manifest.read(artifact)


@pytest.mark.parametrize("schema", [0, 1, 3, "2", None, [2]])
def test_an_unknown_schema_is_refused_with_both_numbers(artifact: Path, schema: object) -> None:
    edit(artifact, schema=schema)
    with pytest.raises(ManifestVersionError, match=r"model\.json: manifest schema .* reads schema 2"):
        manifest.read(artifact)


@pytest.mark.parametrize(
    ("part", "key", "value"), [("proposals", "nms_iou", 0.3), ("input", "pad_value", 0), ("provenance", "created", "x")]
)
def test_an_edited_manifest_is_refused(artifact: Path, part: str, key: str, value: object) -> None:
    path = manifest.manifest_path(artifact)
    values = json.loads(path.read_text(encoding="utf-8"))
    assert values[part][key] != value
    values[part][key] = value
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")
    with pytest.raises(ManifestError, match=r"model\.json: the manifest was edited after it was written"):
        manifest.read(artifact)


def test_spaces_and_the_order_of_keys_are_no_edit(artifact: Path) -> None:
    before = manifest.read(artifact)
    path = manifest.manifest_path(artifact)
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values, sort_keys=True, indent=7), encoding="utf-8")
    assert manifest.read(artifact) == before


def test_another_way_to_write_numbers_and_nothing_is_no_edit(artifact: Path) -> None:
    # JSON has one kind of number: programs in other languages write 1.0 as 1, and leave null out.
    before = manifest.read(artifact)

    def rewritten(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rewritten(item) for key, item in value.items() if item is not None}
        if isinstance(value, list):
            return [rewritten(item) for item in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    path = manifest.manifest_path(artifact)
    text = path.read_text(encoding="utf-8")
    changed = json.dumps(rewritten(json.loads(text)), indent=2) + "\n"
    assert changed != text
    path.write_text(changed, encoding="utf-8")
    assert manifest.read(artifact) == before


def test_a_manifest_without_a_digest_is_read(artifact: Path) -> None:
    edit(artifact, name="renamed by hand")
    assert manifest.read(artifact).name == "renamed by hand"


def test_a_missing_artifact_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none\.onnx: no such file"):
        manifest.read(tmp_path / "none.onnx")


def test_a_missing_manifest_is_named(artifact: Path) -> None:
    manifest.manifest_path(artifact).unlink()
    with pytest.raises(ManifestError, match=r"model\.json: the manifest of model\.onnx is missing"):
        manifest.read(artifact)


def test_a_manifest_cut_off_anywhere_is_refused(artifact: Path) -> None:
    path = manifest.manifest_path(artifact)
    text = path.read_text(encoding="utf-8")
    for length in range(0, len(text.rstrip()), 97):
        path.write_text(text[:length], encoding="utf-8")
        with pytest.raises(ManifestError, match=r"model\.json: not a manifest"):
            manifest.read(artifact)


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"{}", b'"schema"', b"[" * 100_000, b"\xff\xfe"], ids=lambda data: repr(data[:8])
)
def test_a_file_that_is_no_manifest_is_refused(artifact: Path, data: bytes) -> None:
    manifest.manifest_path(artifact).write_bytes(data)
    with pytest.raises(ManifestError, match=r"model\.json"):
        manifest.read(artifact)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"color": "BGR"}, "color: unknown setting"),
        ({"opset": "18"}, "opset: expected a whole number"),
        ({"kind": "pickle"}, "kind: expected one of 'onnx', 'engine'"),
        ({"input": {"network_hw": [384, 640]}}, r"input\.mean_bgr: missing"),
        ({"anchors": {"strides_px": [8.5], "sizes_px": [[32]], "ratios_hw": [1]}}, r"anchors\.strides_px"),
        ({"outputs": [{"name": "boxes"}]}, r"outputs\[0\]\.dtype: missing"),
        ({"proposals": None}, "proposals"),
    ],
)
def test_a_wrong_field_is_named(artifact: Path, changes: dict[str, Any], named: str) -> None:
    edit(artifact, **changes)
    with pytest.raises(ManifestError, match=named):
        manifest.read(artifact)


def test_a_missing_field_is_named(artifact: Path) -> None:
    path = manifest.manifest_path(artifact)
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["backbone"]
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ManifestError, match=r"model\.json: backbone: missing"):
        manifest.read(artifact)


def test_the_outputs_are_the_three_that_every_graph_has() -> None:
    assert [(spec.name, spec.dtype, spec.shape) for spec in manifest.standard_outputs(7)] == [
        ("boxes", "float32", ("N", 7, 4)),
        ("scores", "float32", ("N", 7)),
        ("count", "int32", ("N",)),
    ]
