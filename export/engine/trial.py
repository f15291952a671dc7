"""The trial of a fresh engine, before it gets its name and where this machine can run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

import edgerpn.golden
import edgerpn.manifest
from edgerpn.errors import ArtifactMismatchError, BuildError, EngineLoadError, MissingDependencyError
from edgerpn.export.engine.libraries import BuildMachine
from edgerpn.export.engine.report import BuildReport
from edgerpn.golden import Golden
from edgerpn.manifest import Manifest, ParitySpec
from edgerpn.matching import TOLERANCES, match, pair_cosines
from edgerpn.proposals import Outputs
from edgerpn.runtime.backends.tensorrt.cuda_provider import open_device

Compare = Callable[[Path, Path], ParitySpec]
"""Compares an engine with its ONNX file; raises ParityError when they disagree."""


def try_engine(
    report: BuildReport,
    staged: Path,
    made: Manifest,
    onnx: Manifest,
    *,
    compare: Compare | None,
    log: Callable[[str], None],
) -> Manifest:
    """Runs the golden frames; with `compare`, also compares the engine with the ONNX file on photographs.

    The report notes the trials, or the reason for leaving them out and the command that runs them on the device.

    Args:
        report: Of this build; names the ONNX file, the engine and this machine.
        staged: The engine under its temporary name; a manifest is beside it during the call.
        made: Its manifest.
        onnx: The manifest of the ONNX file.
        compare: Compares the two files on photographs, or None.
        log: Called with lines for people.

    Returns:
        The manifest, with the agreement on photographs, or without them that on the golden frames.

    Raises:
        BuildError: TensorRT cannot load the engine that it just built for this GPU.
        SelfTestError: The engine returned other proposals for the golden frames than expected.
        ParityError: Engine and ONNX file disagree on the photographs.
    """
    later = f"try it on the device: edgerpn check {report.engine.name} --against {report.onnx.name} --images DIR"
    reason = _obstacle(report.environment.machine)
    tried: list[str] = []
    if reason is None:
        edgerpn.manifest.write(made, staged)
        try:
            made, tried = _run(staged, made, report.onnx, onnx, compare)
        except MissingDependencyError as error:  # says nothing about the engine
            reason = str(error)
        except (ArtifactMismatchError, EngineLoadError) as error:
            if made.target == "tensorrt":
                raise BuildError(f"{report.engine.name}: built, but it does not load on this GPU: {error}") from error
            reason = str(error)
        finally:
            edgerpn.manifest.manifest_path(staged).unlink(missing_ok=True)
    if reason is not None:
        report.note(f"the engine was not tried here: {reason}; {later}", log)
    else:
        report.note(f"the engine {' and '.join(tried)}" if tried else f"the engine loads here; {later}", log)
    return made


def _obstacle(machine: BuildMachine) -> str | None:
    """Returns the reason why this machine cannot run the engine, or None."""
    if machine.gpu is None:
        return "there is no NVIDIA GPU or driver"
    try:
        open_device()
    except MissingDependencyError as error:  # a build does not need the package
        return str(error)
    except EngineLoadError:
        pass  # loading the engine raises it with more context
    return None


def _run(
    staged: Path, made: Manifest, onnx_file: Path, onnx: Manifest, compare: Compare | None
) -> tuple[Manifest, list[str]]:
    """Runs both trials; returns the manifest with the agreement found, and the trials that passed."""
    tried = []
    parity = _run_golden(staged, made, onnx_file, onnx)
    if parity is not None:
        made = made.replace(parity=parity)
        tried.append("returns the expected proposals for the golden frames")
    if compare is not None:
        made = made.replace(parity=compare(staged, onnx_file))
        tried.append("agrees with the ONNX file on photographs")
    return made, tried


def _run_golden(staged: Path, made: Manifest, onnx_file: Path, onnx: Manifest) -> ParitySpec | None:
    """Opens the engine and runs the golden frames one by one; returns their agreement, or None without any."""
    from edgerpn.runtime.backends.open_backend import open_backend

    # The code for the CPU in a version-compatible engine is that of the library, which built it a moment ago.
    backend = open_backend(staged, allow_host_code=True)
    try:
        if onnx.golden is None:
            return None
        golden = edgerpn.golden.read(onnx_file, onnx)
        size = made.engine.profile.min_batch if made.engine is not None else 1
        # The smallest batch that the engine takes, filled with copies of the frame.
        batches = [backend.infer(np.repeat(frame[None], size, axis=0)) for frame in golden.frames]
        outputs = Outputs.join([batch.each(lambda array: array[:1]) for batch in batches])
        edgerpn.golden.compare(golden, outputs, made, where=f"{made.name} ({backend.name})")
    finally:
        backend.close()
    return golden_parity(golden, outputs, made, batch=size)


def golden_parity(golden: Golden, outputs: Outputs, manifest: Manifest, *, batch: int) -> ParitySpec:
    """Agreement of an artifact's outputs for the golden frames with the expected ones.

    Args:
        golden: The frames and the expected proposals.
        outputs: Those of the artifact for these frames.
        manifest: The artifact's; its rounding chooses the tolerance.
        batch: Batch size at which they were run.
    """
    boxes, scores, count = outputs[:3]
    num_proposals, ious, differences = 0, [1.0], [0.0]
    cosines: list[float] = []
    num_matched = 0
    for frame in range(len(golden.frames)):
        wanted, given = int(golden.count[frame]), int(count[frame])
        expected = golden.boxes[frame, :wanted], golden.scores[frame, :wanted]
        found = boxes[frame, :given], scores[frame, :given]
        pairs, pair_ious = match(expected, found, TOLERANCES[manifest.rounding])
        num_proposals += wanted + given
        num_matched += len(pairs)
        ious += pair_ious
        cosines += pair_cosines(golden.outputs, outputs, frame, pairs).tolist()
        differences += [abs(float(expected[1][e]) - float(found[1][f])) for e, f in pairs]
    return ParitySpec(
        reference="golden frames",
        num_images=len(golden.frames),
        batch_sizes=(batch,),
        num_matched=num_matched,
        num_boundary=0,
        num_unexplained=num_proposals - 2 * num_matched,
        min_iou=round(min(ious), 6),
        max_score_difference=float(f"{max(differences):.3g}"),
        min_cosine=round(min(cosines), 6) if cosines else None,
    )
