"""The manifest describes an artifact (`model.onnx` or `model.engine`) in a JSON file beside it.

`model.json` lies beside `model.onnx`, and `model.engine.json` beside `model.engine`; the ONNX file carries the same
text, without its own hash, in its `metadata_props` under `METADATA_KEY`. The graph's interface is the same for every
artifact:

    frames  uint8   [N, H, W, 3]  BGR, as OpenCV delivers it; or [N, H, W, 4] BGRx, whose fourth channel is ignored
    boxes   float32 [N, K, 4]     x1, y1, x2, y2 in pixels of the input frame; rows beyond count are zero
    scores  float32 [N, K]        0..1, descending; rows beyond count are zero
    count   int32   [N]           number of valid rows

A graph may have more outputs, see `more_outputs`; their types and numbers of axes tell them apart:

    labels        int32   [N, K]           number of each box's class in `Manifest.class_names`, from 0
    class_scores  float32 [N, K]           probability of that class, 0..1
    embeddings    float32 [N, K, C]        features of the cell that proposed each box, with a norm of 1
    features      float32 [N, K, C, h, w]  features of each box, pooled by RoIAlign

Their rows beyond count are zero.

A graph in the layout of another program has its outputs instead, see `Layout`; no backend of ours runs it.

Another program may have renamed these tensors; the manifest then holds their names, see `edgerpn check --reseal`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgerpn import files, settings
from edgerpn.errors import ConfigError, ManifestError, ManifestVersionError
from edgerpn.manifest.integrity import check_engine, check_onnx, check_seal, digest_of, read_metadata
from edgerpn.manifest.parts import (
    AnchorSpec,
    EngineSpec,
    GoldenSpec,
    InputSpec,
    OutputSpec,
    ParitySpec,
    Precision,
    PrecisionSpec,
    ProposalSpec,
    Provenance,
    RecallSpec,
)
from edgerpn.proposals import CLASSES, output_dtype
from edgerpn.targets import ExportTarget

_logger = logging.getLogger(__name__)

SCHEMA = 2
"""The schema number of a graph with the outputs boxes, scores and count."""

SCHEMA_MORE_OUTPUTS = 3
"""The schema number of a graph with more outputs, which versions that know schema 2 only refuse."""

SCHEMA_LAYOUT = 4
"""The schema number of a graph in the layout of another program, which versions that do not know layouts refuse."""

Layout = Literal["proposals", "frigate", "deepstream"]
"""Form of inputs and outputs: ours, or that of another program.

`frigate`: one output `rows`, float32 [20, 7], for a batch of 1. A row holds batch, x1, y1, x2, y2 in pixels of the
frame, score and class, best first; the class of a row without a proposal is -1.

`deepstream`: `frames` is float32 [N, 3, H, W], BGR from 0 to 255, and `count` int32 [N, 1]; the rest is ours."""

FRIGATE_ROWS = 20
"""Rows that Frigate reads."""

METADATA_KEY = "edgerpn.manifest"
"""Key of the manifest's JSON text in an ONNX file's `metadata_props`."""

DIGEST_KEY = "edgerpn.sha256"
"""Key of the digest in an ONNX file's `metadata_props` that checks a file without a manifest beside it, see `seal`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The description of an artifact, for runtimes and people."""

    schema: int = SCHEMA
    """Schema number of this file."""
    name: str
    """Name of the model, for people."""
    kind: Literal["onnx", "engine"] = "onnx"
    """Form of the artifact file."""
    target: ExportTarget
    """Library that it was made for."""
    precision: Precision = "fp32"
    """Precision of backbone, neck and head."""
    opset: int
    """ONNX operator set."""
    backbone: str
    """Name of the backbone."""
    input: InputSpec
    """Input of the graph."""
    outputs: tuple[OutputSpec, ...] = ()
    """Outputs of the graph: boxes, scores, count and further ones, whatever their names; empty: the first three, under
    these names."""
    layout: Layout = "proposals"
    """Form of inputs and outputs; `outputs` describes them as they are, `input` those of our layout."""
    class_names: tuple[str, ...] = ()
    """Names of the classes, by the numbers in the output `labels`; empty: the model does not have classes."""
    anchors: AnchorSpec
    """Anchors baked into the graph."""
    proposals: ProposalSpec
    """The proposal stage."""
    provenance: Provenance
    """Its origin."""
    recall: RecallSpec | None = None
    """Recall measured at export; None without annotated images."""
    accepted: PrecisionSpec | None = None
    """Acceptance of a precision below fp32 by its recall."""
    parity: ParitySpec | None = None
    """Agreement of the artifact with the form that it was made from."""
    golden: GoldenSpec | None = None
    """Frames with their expected proposals, for the self-test of a runtime."""
    engine: EngineSpec | None = None
    """Build of an engine; None for an ONNX file."""

    @property
    def rounding(self) -> Precision:
        """The precision that chooses the tolerance of comparisons: TF32 rounds as much as fp16."""
        return "fp16" if self.precision == "fp32" and self.engine is not None and self.engine.tf32 else self.precision

    @property
    def outputs_by_role(self) -> dict[str, OutputSpec]:
        """Outputs in the order of the graph, by their names in `edgerpn.proposals.Outputs`; it may use others."""
        specs = self.outputs or standard_outputs(self.proposals.num_proposals)
        roles = ("boxes", "scores", "count", *(_ROLES[spec.dtype, len(spec.shape)] for spec in specs[3:]))
        return dict(zip(roles, specs, strict=True))

    def __post_init__(self) -> None:
        if self.layout != "proposals":
            return
        if len(self.outputs) in (1, 2):
            raise ValueError(f"outputs: expected boxes, scores and count, got {len(self.outputs)} outputs")
        forms = [(spec.dtype, len(spec.shape)) for spec in self.outputs[3:]]
        if not set(forms) <= _ROLES.keys() or len(set(forms)) != len(forms):
            raise ValueError(f"outputs: expected further ones like {list(_ROLES.values())}, got {self.outputs[3:]}")
        found = [role for role in CLASSES if role in self.outputs_by_role]
        if len(found) not in (0, len(CLASSES)) or bool(found) is not bool(self.class_names):
            names = ", ".join(self.class_names) or "none"
            raise ValueError(
                f"outputs: expected labels and class_scores where there are class_names and nowhere else, got "
                f"{' and '.join(found) or 'neither'} with class_names: {names}"
            )

    def to_json(self) -> str:
        """Returns the manifest as indented JSON text."""
        values = settings.to_dict(self)
        # Manifests of graphs without such outputs stay as earlier versions wrote and read them.
        if self.layout == "proposals":
            del values["layout"]
        if not self.class_names:
            del values["class_names"], values["proposals"]["class_nms_iou"]
        for name in ("min_cosine", "num_other_class"):
            if self.parity is not None and getattr(self.parity, name) is None:
                del values["parity"][name]
        return json.dumps(values, indent=2) + "\n"

    def replace(self, **changes: Any) -> Manifest:
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **changes)


_ROLES = {
    ("int32", 2): "labels",
    ("float32", 2): "class_scores",
    ("float32", 3): "embeddings",
    ("float32", 5): "features",
}
"""Type and number of axes of the outputs that a graph may have beyond the first three, and their names in
`edgerpn.proposals.Outputs`."""


def more_outputs(
    num_proposals: int,
    *,
    has_classes: bool = False,
    embedding_shape: tuple[int] | None = None,
    feature_shape: tuple[int, int, int] | None = None,
) -> tuple[OutputSpec, ...]:
    """Returns the outputs beyond the first three.

    Args:
        num_proposals: K.
        has_classes: Whether the graph has classes.
        embedding_shape: C; None: the graph has no embeddings.
        feature_shape: C, h and w; None: the graph has no features.
    """
    per_class = () if has_classes else None
    forms: tuple[tuple[str, tuple[int, ...] | None, str], ...] = (
        ("labels", per_class, "number of the class of each box in class_names, from 0"),
        ("class_scores", per_class, "probability of that class, 0..1"),
        ("embeddings", embedding_shape, "features of the cell that proposed each box, with a norm of 1"),
        ("features", feature_shape, "features of each box, pooled by RoIAlign with two samples a side of a cell"),
    )
    return tuple(
        OutputSpec(
            name=name,
            dtype=output_dtype(name).__name__,
            shape=("N", num_proposals, *shape),
            meaning=f"{meaning}; rows beyond count are zero",
        )
        for name, shape, meaning in forms
        if shape is not None
    )


def standard_outputs(num_proposals: int) -> tuple[OutputSpec, ...]:
    """Returns the three outputs that every graph has, for K = `num_proposals`."""
    return (
        OutputSpec(
            name="boxes",
            dtype="float32",
            shape=("N", num_proposals, 4),
            meaning="x1, y1, x2, y2 in pixels of the input frame; rows beyond count are zero",
        ),
        OutputSpec(
            name="scores",
            dtype="float32",
            shape=("N", num_proposals),
            meaning="objectness after NMS, 0..1, descending; rows beyond count are zero",
        ),
        OutputSpec(name="count", dtype="int32", shape=("N",), meaning="number of valid rows"),
    )


def frigate_outputs(min_score: float) -> tuple[OutputSpec, ...]:
    """Returns the output of a graph in the layout `frigate`, in which the score `min_score` became 0.5."""
    meaning = (
        "batch, x1, y1, x2, y2 in pixels of the input frame, score raised to the power by which "
        f"{min_score:g} becomes 0.5, class; class -1: no proposal"
    )
    return (OutputSpec(name="rows", dtype="float32", shape=(FRIGATE_ROWS, 7), meaning=meaning),)


def manifest_path(artifact: str | os.PathLike[str]) -> Path:
    """Path of the manifest of an artifact: model.json for model.onnx, model.engine.json for model.engine."""
    return Path(f"{stem(artifact)}.json")


def stem(artifact: str | os.PathLike[str]) -> Path:
    """Returns the common start of the names of the files beside an artifact.

    A graph and the engine built from it may lie in one folder under one name, so only .onnx is dropped.
    """
    path = Path(artifact)
    return path.with_suffix("") if path.suffix == ".onnx" else path


def parse(text: str, *, source: str) -> Manifest:
    """Reads a manifest from JSON text; `source` names it in errors.

    Raises:
        ManifestVersionError: This version does not read the schema number.
        ManifestError: The text is not JSON, a field is missing, unknown or of the wrong type, or the text was changed
            after `write`.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{source}: not a manifest: {error}. Export the model again to rewrite it.") from error
    if not isinstance(values, dict) or "schema" not in values:
        raise ManifestError(f"{source}: not a manifest: expected a JSON object with the key 'schema'")
    if values["schema"] not in (SCHEMA, SCHEMA_MORE_OUTPUTS, SCHEMA_LAYOUT):
        raise ManifestVersionError(
            f"{source}: manifest schema {values['schema']!r}, but this version of edgerpn reads the schemas "
            f"{SCHEMA} to {SCHEMA_LAYOUT}. Use the version that wrote it, or export the model again."
        )
    digest = values.pop("digest", None)
    try:
        manifest = settings.from_dict(Manifest, values, source=source)
    except ConfigError as error:
        raise ManifestError(f"{error}\nThe manifest is malformed; export the model again.") from error
    if digest is not None and digest != digest_of(values):
        raise ManifestError(
            f"{source}: the manifest was edited after it was written: its contents do not fit its digest. Copy it "
            "again, or export or build the model again."
        )
    return manifest


def is_manifest(path: Path) -> bool:
    """Returns whether a file looks like an undamaged manifest of any schema."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and "schema" in values and "provenance" in values


def write(manifest: Manifest, artifact: str | os.PathLike[str]) -> Path:
    """Writes the manifest beside `artifact` in one step, with the artifact's hash and size; returns its path.

    The text contains a digest of itself, by which `parse` detects a change.
    """
    digest, num_bytes = files.sha256(artifact), Path(artifact).stat().st_size
    provenance = dataclasses.replace(manifest.provenance, artifact_sha256=digest, artifact_bytes=num_bytes)
    if manifest.kind == "onnx":
        provenance = dataclasses.replace(provenance, onnx_sha256=digest)
    path = manifest_path(artifact)
    values = json.loads(manifest.replace(provenance=provenance).to_json())
    files.write_text(path, json.dumps({**values, "digest": digest_of(values)}, indent=2) + "\n")
    return path


def read(artifact: str | os.PathLike[str], *, verify: bool = True) -> Manifest:
    """Reads and checks the manifest beside `artifact`.

    Args:
        artifact: The ONNX file or engine.
        verify: False accepts an ONNX file that was changed since export, with a warning in the log.

    Raises:
        ManifestError: The artifact or its manifest is missing, or the manifest is malformed.
        ManifestVersionError: The manifest's schema is unknown.
        ArtifactMismatchError: The artifact is truncated, damaged or an engine that the manifest does not describe.
        ArtifactChangedError: An ONNX file was changed since export.
    """
    artifact = Path(artifact)
    path = manifest_path(artifact)
    if not artifact.is_file():
        what = "this is a folder, expected an exported model" if artifact.is_dir() else "no such file"
        raise ManifestError(f"{artifact}: {what}")
    if not path.is_file():
        raise ManifestError(
            f"{path}: the manifest of {artifact.name} is missing; copy it along, or export again (models of other "
            "programs do not have one and cannot be used)"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read: {error}") from error
    manifest = parse(text, source=str(path))
    if manifest.kind == "onnx":
        check_onnx(artifact, manifest.provenance, path.name, verify=verify)
    else:
        check_engine(artifact, manifest.provenance, path.name)
    return manifest


def find(artifact: str | os.PathLike[str], *, verify: bool = True) -> Manifest:
    """Reads the manifest beside an artifact, or inside an ONNX file that has none beside it.

    Such a file is checked against the digest inside, if there is one; its graph is not parsed.

    Args:
        artifact: The ONNX file or engine.
        verify: As for `read`.

    Raises:
        ManifestError: As for `read`; or an ONNX file without a manifest beside it is damaged, or has none inside.
        ManifestVersionError: As for `read`.
        ArtifactMismatchError: As for `read`.
        ArtifactChangedError: As for `read`.
    """
    artifact = Path(artifact)
    if artifact.suffix.lower() != ".onnx" or manifest_path(artifact).is_file() or not artifact.is_file():
        return read(artifact, verify=verify)
    properties = read_metadata(artifact)
    if METADATA_KEY not in properties:
        raise ManifestError(
            f"{artifact}: not a model of edgerpn: {manifest_path(artifact).name} is not beside it, and it has no "
            f"metadata {METADATA_KEY!r}. Export it with edgerpn export."
        )
    if not check_seal(artifact, properties.get(DIGEST_KEY), verify=verify):
        _logger.info("%s: its manifest is not beside it, so the file's hash was not checked", artifact)
    return parse(properties[METADATA_KEY], source=f"{artifact} (metadata)")
