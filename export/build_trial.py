"""A fresh engine is run before it gets its name, where this machine can run it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import edgerpn.golden
import edgerpn.manifest
from edgerpn.errors import ArtifactMismatchError, BuildError, EngineLoadError, MissingDependencyError
from edgerpn.export.build_libraries import Machine
from edgerpn.manifest import Manifest, ParitySpec

Compare = Callable[[Path, Path], ParitySpec]
"""Compares an engine with its ONNX file; raises ParityError when they disagree."""


def try_engine(
    engine: Path, manifest: Manifest, onnx_file: Path, onnx: Manifest, machine: Machine, *, compare: Compare | None
) -> tuple[Manifest, str]:
    """Runs the golden frames, and compares with the ONNX file on photographs when some are given.

    Args:
        engine: The engine under its temporary name; a manifest lies beside it during the call.
        manifest: Its manifest.
        onnx_file: What it was built from.
        onnx: The manifest of that.
        machine: This computer.
        compare: Compares the two files on photographs, or None.

    Returns:
        The manifest, with the agreement on photographs; and a line for people: what was tried, or why nothing was
        and which command does it on the device.

    Raises:
        BuildError: TensorRT cannot load the engine that it just built for this GPU.
        SelfTestError: The golden frames gave other proposals.
        ParityError: Engine and ONNX file disagree on the photographs.
    """
    reason = _why_not(manifest, machine)
    later = (
        f"try it on the device: edgerpn check {manifest.name}{engine.suffix} --against {onnx_file.name} --images DIR"
    )
    if reason is not None:
        return manifest, f"the engine was not tried here: {reason}; {later}"
    edgerpn.manifest.write(manifest, engine)
    try:
        tried = _run_golden(engine, manifest, onnx_file, onnx)
        if compare is not None:
            manifest = manifest.replace(parity=compare(engine, onnx_file))
            tried.append("agrees with the ONNX file on photographs")
    except (ArtifactMismatchError, EngineLoadError, MissingDependencyError) as error:
        if not isinstance(error, MissingDependencyError) and manifest.target == "tensorrt":
            raise BuildError(f"{engine.name}: built, but it does not load on this GPU: {error}") from error
        return manifest, f"the engine was not tried here: {error}; {later}"
    finally:
        edgerpn.manifest.manifest_path(engine).unlink(missing_ok=True)
    return manifest, f"the engine {' and '.join(tried)}" if tried else f"the engine loads here; {later}"


def _why_not(manifest: Manifest, machine: Machine) -> str | None:
    """Why this machine cannot run the engine, or None when it may."""
    if machine.gpu is None:
        return "there is no NVIDIA GPU or driver"
    if manifest.engine is not None and manifest.engine.weight_stripped:
        return "it has no weights; put them in with --refit"
    return None


def _run_golden(engine: Path, manifest: Manifest, onnx_file: Path, onnx: Manifest) -> list[str]:
    """Opens the engine, and runs the golden frames one by one; returns what was shown."""
    import numpy as np

    from edgerpn.runtime.opening import open_backend

    backend = open_backend(engine)
    try:
        if onnx.golden is None:
            return []
        golden = edgerpn.golden.read(onnx_file, onnx)
        size = manifest.engine.profile.min_batch if manifest.engine is not None else 1
        # The smallest batch that the engine takes, filled up with copies of the frame.
        outputs = [backend.infer(np.repeat(frame[None], size, axis=0)) for frame in golden.frames]
        boxes, scores, count = (np.stack([output[part][0] for output in outputs]) for part in range(3))
        edgerpn.golden.compare(golden, (boxes, scores, count), manifest, where=f"{manifest.name} ({backend.name})")
    finally:
        backend.close()
    return ["gives the expected proposals for the golden frames"]
