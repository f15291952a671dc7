"""Golden frames: a few input frames and the proposals expected for them, beside an artifact.

`model.golden.npz` lies beside `model.onnx`; the manifest holds its hash. A runtime that runs the frames and finds the
proposals proves that library, driver, GPU and file work together, without any other package. The frames are
photographs of the export's comparison, letterboxed into the graph's input.
"""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgerpn import files
from edgerpn.errors import ArtifactMismatchError, ManifestError, SelfTestError
from edgerpn.manifest import Manifest, stem
from edgerpn.manifest.parts import GoldenSpec
from edgerpn.matching import TOLERANCES, match, other_class_share, pair_classes, pair_cosines, unlike_share
from edgerpn.proposals import DESCRIPTIONS, Outputs

NPZ_ERRORS = (
    ValueError, EOFError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile, zlib.error, tokenize.TokenError
)  # fmt: skip
"""Errors of NumPy about a damaged .npz file or another file. AttributeError (Python 3.10) or TypeError: an .npy file;
RuntimeError: one wrong bit can say that an entry is encrypted, or compressed in a way that Python does not know.
TokenError: a bracket in the header of an array is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Golden:
    """Frames and the proposals of a model for them."""

    frames: npt.NDArray[np.uint8]
    """(F, H, W, 3) uint8 BGR or (F, H, W, 4) BGRx, as the graph's input."""
    boxes: npt.NDArray[np.float32]
    """(F, K, 4) float32, as the graph returned them."""
    scores: npt.NDArray[np.float32]
    """(F, K) float32."""
    count: npt.NDArray[np.int32]
    """(F,) int32."""
    labels: npt.NDArray[np.int32] | None = None
    """(F, K) int32; None: the graph does not have classes."""
    class_scores: npt.NDArray[np.float32] | None = None
    """(F, K) float32; None: the graph does not have classes."""
    embeddings: npt.NDArray[np.float32] | None = None
    """(F, K, C) float32; None: the graph does not have them."""
    features: npt.NDArray[np.float32] | None = None
    """(F, K, C, h, w) float32; None: the graph does not have them."""

    @property
    def outputs(self) -> Outputs:
        """The proposals, as a graph returns them."""
        return Outputs(**{name: getattr(self, name) for name in Outputs._fields})


def golden_path(artifact: str | os.PathLike[str]) -> Path:
    """Path of the golden frames: model.golden.npz for model.onnx, model.engine.golden.npz for model.engine."""
    return Path(f"{stem(artifact)}.golden.npz")


def write(golden: Golden, artifact: str | os.PathLike[str]) -> GoldenSpec:
    """Writes the golden frames beside `artifact` in one step; returns the entry for its manifest."""
    path = golden_path(artifact)
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, frames=golden.frames, **golden.outputs.present)  # type: ignore[arg-type]
    return GoldenSpec(file=path.name, sha256=files.sha256(path), num_frames=len(golden.frames))


def read(artifact: str | os.PathLike[str], manifest: Manifest) -> Golden:
    """Reads the golden frames of `artifact`.

    Raises:
        ManifestError: The manifest names no golden frames, or the file is missing or malformed.
        ArtifactMismatchError: The file is not the one that the manifest describes.
    """
    spec = manifest.golden
    if spec is None:
        raise ManifestError(f"{artifact}: its manifest names no golden frames; export it again to get them")
    path = Path(artifact).parent / Path(spec.file).name
    if not path.is_file():
        raise ManifestError(f"{path}: the golden frames of {Path(artifact).name} are missing; copy them along")
    try:
        # NumPy leaves a damaged file open that it has opened itself.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            described = [name for name in DESCRIPTIONS if name in arrays]
            found = Golden(**{name: arrays[name] for name in ("frames", "boxes", "scores", "count", *described)})
    except (KeyError, OSError, *NPZ_ERRORS) as error:
        raise ManifestError(
            f"{path}: truncated or damaged: not golden frames. Copy it again, or export the model again."
        ) from error
    if files.sha256(path) != spec.sha256:
        raise ArtifactMismatchError(
            f"{path}: golden frames, but not those that the manifest of {Path(artifact).name} describes. Copy all "
            "files of one export together, or export again."
        )
    return found


def compare(
    golden: Golden,
    outputs: Outputs,
    manifest: Manifest,
    *,
    where: str,
) -> None:
    """Compares the outputs of a model for the golden frames with the expected proposals.

    Args:
        golden: The frames and the expected proposals.
        outputs: Those of the model for these frames.
        manifest: Its precision chooses the tolerance.
        where: Names the model and the library that ran it in errors.

    Raises:
        SelfTestError: Too many proposals of a frame have no counterpart, or one with other features; or none of the
            frames has a proposal.
    """
    if not golden.count.any():
        raise SelfTestError(
            f"{where}: none of the golden frames has a proposal, so that nothing can be compared; export the model "
            "again, with photographs of objects (--data or --images)"
        )
    tolerance = TOLERANCES[manifest.rounding]
    boxes, scores, count = outputs[:3]
    for frame in range(len(golden.frames)):
        wanted, given = int(golden.count[frame]), int(count[frame])
        pairs, _ = match(
            (golden.boxes[frame, :wanted], golden.scores[frame, :wanted]),
            (boxes[frame, :given], scores[frame, :given]),
            tolerance,
        )
        unmatched = max(wanted, given) - len(pairs)
        if unmatched > tolerance.max_unmatched_share * max(wanted, given):
            raise SelfTestError(
                f"{where}: golden frame {frame}: {unmatched} of {max(wanted, given)} proposals have no counterpart "
                f"(IoU >= {tolerance.min_iou}, score within {tolerance.max_score_difference}); expected at most "
                f"{tolerance.max_unmatched_share:.0%}. The library or the file does not work here: build or export "
                "the model again on this machine, and compare it with `edgerpn check`."
            )
        share = unlike_share(pair_cosines(golden.outputs, outputs, frame, pairs), tolerance)
        if share > tolerance.max_unmatched_share:
            raise SelfTestError(
                f"{where}: golden frame {frame}: the features of {share:.0%} of the proposals differ (cosine below "
                f"{tolerance.min_cosine}); expected at most {tolerance.max_unmatched_share:.0%}. Build or export the "
                "model again on this machine, and compare it with `edgerpn check`."
            )
        share = other_class_share(pair_classes(golden.outputs, outputs, frame, pairs, tolerance))
        if share > tolerance.max_unmatched_share:
            raise SelfTestError(
                f"{where}: golden frame {frame}: the class of {share:.0%} of the proposals differs, or its score by "
                f"more than {tolerance.max_score_difference}; expected at most {tolerance.max_unmatched_share:.0%}. "
                "Build or export the model again on this machine, and compare it with `edgerpn check`."
            )
