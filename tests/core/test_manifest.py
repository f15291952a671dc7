from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from edgerpn import files, manifest
from edgerpn.errors import ArtifactChangedError, ArtifactMismatchError, ManifestError, ManifestVersionError
from edgerpn.manifest import AnchorSpec, InputSpec, Manifest, ProposalSpec, Provenance, RecallSpec

VALUES = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
GRAPH = helper.make_model(
    helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", VALUES[:1], VALUES[1:]),
    opset_imports=[helper.make_opsetid("", 18)],
    ir_version=10,
)
ONNX = GRAPH.SerializeToString()
OUTPUT = {"name": "boxes", "dtype": "float32", "shape": ["N", 100, 4], "meaning": "boxes"}
INPUT = {"network_hw": [384, 640], "mean_bgr": [0, 0, 0], "std_bgr": [1, 1, 1]}


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
    path.write_bytes(ONNX)
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
    assert found.provenance.artifact_bytes == len(ONNX)
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


def renamed() -> bytes:
    """The graph after another program has renamed its node."""
    graph = onnx.ModelProto.FromString(ONNX)
    graph.graph.node[0].name = "node_of_another_program"
    return graph.SerializeToString()


def test_a_graph_that_another_program_changed_is_not_called_damaged(artifact: Path) -> None:
    artifact.write_bytes(renamed())
    advice = r"edgerpn check model\.onnx --against ORIGINAL\.onnx --reseal"
    with pytest.raises(ArtifactChangedError, match=rf"model\.onnx: changed since export: .*model\.json.*{advice}"):
        manifest.read(artifact)


def test_a_changed_graph_is_used_with_a_warning_when_asked(artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = manifest.read(artifact)
    artifact.write_bytes(renamed())
    assert manifest.read(artifact, verify=False) == expected
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "model.onnx: changed since export" in record.message


@pytest.mark.parametrize("length", range(len(ONNX)))
def test_a_graph_cut_off_anywhere_is_damaged_even_if_nothing_is_verified(artifact: Path, length: int) -> None:
    artifact.write_bytes(ONNX[:length])
    message = rf"model\.onnx: truncated or damaged: {length} bytes, expected {len(ONNX)}, .* model\.json together"
    for verify in (True, False):
        with pytest.raises(ArtifactMismatchError, match=message) as caught:
            manifest.read(artifact, verify=verify)
        assert type(caught.value) is ArtifactMismatchError


@pytest.mark.parametrize(
    "data",
    [
        b"text of a web page",
        b"\0" * len(ONNX),
        ONNX[: len(ONNX) // 2] + b"\0" * (len(ONNX) - len(ONNX) // 2),
        b"\x80" * 40,
    ],
    ids=["text", "zeros", "zeros from the middle on", "an endless number"],
)
def test_a_file_that_is_not_onnx_is_damaged(artifact: Path, data: bytes) -> None:
    artifact.write_bytes(data)
    with pytest.raises(ArtifactMismatchError, match=r"model\.onnx: truncated or damaged"):
        manifest.read(artifact)


def test_an_engine_is_never_used_under_the_manifest_of_another(tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(b"a plan")
    manifest.write(example(kind="engine"), path)
    for data, words in ((b"b plan", "not the engine"), (b"a pla", "truncated, or not the engine")):
        path.write_bytes(data)
        with pytest.raises(ArtifactMismatchError, match=rf"model\.engine: {words} that model\.engine\.json describes"):
            manifest.read(path, verify=False)


def test_a_manifest_without_a_size_is_read_too(artifact: Path) -> None:
    path = manifest.manifest_path(artifact)
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["provenance"]["artifact_bytes"], values["digest"]
    path.write_text(json.dumps(values), encoding="utf-8")
    assert manifest.read(artifact).provenance.artifact_bytes is None
    artifact.write_bytes(ONNX[:-1])
    with pytest.raises(ArtifactMismatchError, match=rf"truncated or damaged: {len(ONNX) - 1} bytes, which"):
        manifest.read(artifact)


def test_a_manifest_without_a_hash_vouches_for_nothing(artifact: Path) -> None:
    manifest.manifest_path(artifact).write_text(example().to_json(), encoding="utf-8")
    with pytest.raises(ArtifactChangedError, match="expected none"):
        manifest.read(artifact)


def test_outputs_may_have_other_names_but_are_at_least_three(artifact: Path) -> None:
    assert list(example(outputs=()).outputs_by_role) == ["boxes", "scores", "count"]
    outputs = [dataclasses.replace(spec, name=f"their_{spec.name}") for spec in manifest.standard_outputs(100)]
    manifest.write(example(outputs=tuple(outputs)), artifact)
    assert [spec.name for spec in manifest.read(artifact).outputs] == ["their_boxes", "their_scores", "their_count"]
    edit(artifact, outputs=[{"name": "boxes", "dtype": "float32", "shape": ["N"], "meaning": "boxes"}])
    with pytest.raises(ManifestError, match="outputs: expected boxes, scores and count, got 1 outputs"):
        manifest.read(artifact)


def test_further_outputs_have_a_schema_of_their_own_and_roles_by_their_form(artifact: Path) -> None:
    further = manifest.more_outputs(100, embedding_shape=(48,), feature_shape=(48, 7, 5))
    renamed = tuple(dataclasses.replace(spec, name=f"their_{spec.name}") for spec in further)
    outputs = (*manifest.standard_outputs(100), *renamed)
    manifest.write(example(schema=manifest.SCHEMA_MORE_OUTPUTS, outputs=outputs), artifact)
    found = manifest.read(artifact).outputs_by_role
    assert list(found) == ["boxes", "scores", "count", "embeddings", "features"]
    assert (found["embeddings"], found["features"]) == renamed
    assert found["embeddings"].shape == ("N", 100, 48)
    assert found["features"].shape == ("N", 100, 48, 7, 5)
    assert "class_names" not in json.loads(manifest.manifest_path(artifact).read_text())
    for wrong in ((*outputs, *renamed), (*outputs[:3], dataclasses.replace(further[0], dtype="int32"))):
        with pytest.raises(ValueError, match="outputs: expected further ones like"):
            example(outputs=wrong)


def test_the_names_of_classes_belong_to_the_outputs_of_classes(artifact: Path) -> None:
    classes = manifest.more_outputs(100, has_classes=True)
    assert [(spec.name, spec.dtype, spec.shape) for spec in classes] == [
        ("labels", "int32", ("N", 100)), ("class_scores", "float32", ("N", 100)),
    ]  # fmt: skip
    outputs = (*manifest.standard_outputs(100), *classes)
    manifest.write(example(schema=3, outputs=outputs, class_names=("fish", "crab")), artifact)
    found = manifest.read(artifact)
    assert list(found.outputs_by_role) == ["boxes", "scores", "count", "labels", "class_scores"]
    assert found.class_names == ("fish", "crab")
    for wrong, text in (
        ({"outputs": outputs}, "got labels and class_scores with class_names: none"),
        ({"class_names": ("fish",)}, "got neither with class_names: fish"),
        ({"outputs": outputs[:4], "class_names": ("fish",)}, "got labels with class_names: fish"),
    ):
        with pytest.raises(ValueError, match=f"outputs: expected labels and class_scores where .*, {text}"):
            example(**wrong)


@pytest.mark.parametrize("schema", [0, 1, 5, "2", None, [2]])
def test_an_unknown_schema_is_refused_with_both_numbers(artifact: Path, schema: object) -> None:
    edit(artifact, schema=schema)
    with pytest.raises(ManifestVersionError, match=r"model\.json: manifest schema .* reads the schemas 2 to 4"):
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
    "data",
    [b"", b"null", b"[]", b"{}", b'"schema"', b"[" * 100_000, b"9" * 5000, b"\xff\xfe"],
    ids=lambda data: repr(data[:8]),
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
        ({"outputs": [OUTPUT | {"dtype": "fp16"}] * 3}, r"outputs\[0\]\.dtype: expected float32 or int32, got 'fp16'"),
        ({"outputs": [OUTPUT | {"shape": ["N", "K"]}] * 3}, r"outputs\[0\]\.shape: expected positive sizes"),
        ({"outputs": [OUTPUT | {"shape": []}] * 3}, r"outputs\[0\]\.shape: expected positive sizes"),
        ({"input": INPUT | {"batch": 0}}, r"input\.batch: expected 1 or more"),
        ({"input": INPUT | {"network_hw": [0, 640]}}, r"input\.network_hw: expected two positive sizes"),
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
