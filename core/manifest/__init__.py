"""The manifest describes an artifact in a JSON file beside it and inside an ONNX file; see `reading`."""

from edgerpn.manifest.digest import (
    check_seal,
    seal,
)
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
from edgerpn.manifest.reading import (
    DIGEST_KEY,
    METADATA_KEY,
    SCHEMA,
    Manifest,
    is_manifest,
    manifest_path,
    parse,
    read,
    standard_outputs,
    stem,
    write,
)

__all__ = [
    "DIGEST_KEY",
    "METADATA_KEY",
    "SCHEMA",
    "AnchorSpec",
    "EngineSpec",
    "GoldenSpec",
    "InputSpec",
    "Manifest",
    "OutputSpec",
    "ParitySpec",
    "Precision",
    "PrecisionSpec",
    "ProposalSpec",
    "Provenance",
    "RecallSpec",
    "check_seal",
    "is_manifest",
    "manifest_path",
    "parse",
    "read",
    "seal",
    "standard_outputs",
    "stem",
    "write",
]
