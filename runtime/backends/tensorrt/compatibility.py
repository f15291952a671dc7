"""Whether an engine can run here: each key, what the engine expects, what is found, and what to do.

The one source of words for `edgerpn why` and for a loader that refuses.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgerpn import files
from edgerpn.errors import ArtifactMismatchError, EngineLoadError, MissingDependencyError
from edgerpn.manifest import EngineSpec, Manifest
from edgerpn.runtime.backends.tensorrt.cuda import Device, DeviceInfo
from edgerpn.runtime.backends.tensorrt.cuda_provider import open_device
from edgerpn.runtime.backends.tensorrt.library import TensorRtLibrary, import_library
from edgerpn.targets import HARDWARE_COMPATIBLE_FROM, is_same_version, runs_compatible_engine

Verdict = Literal["ok", "no", "unknown"]

_BUILD = "Build it again on this machine: edgerpn build MODEL.onnx -o {name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One key of compatibility."""

    key: str
    """What is compared."""
    expected: str
    """What the engine needs."""
    found: str
    """What is here."""
    verdict: Verdict
    """no: the engine cannot run; unknown: it could not be found out."""
    advice: str = ""
    """What to do when it is not ok."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Here:
    """What this machine offers to an engine."""

    platform: str
    """Operating system and processor, such as linux-x86_64."""
    library: TensorRtLibrary | None
    """The library, when it works."""
    library_problem: str = ""
    """Why it does not."""
    device: Device | None
    """The GPU, when there is one."""
    device_problem: str = ""
    """Why there is none."""
    error: EngineLoadError | MissingDependencyError | None = None
    """The first of these problems as it was raised."""


def engine_spec(path: Path, manifest: Manifest) -> EngineSpec:
    """The part of a manifest that describes an engine.

    Raises:
        EngineLoadError: The manifest describes something else.
    """
    if manifest.kind != "engine" or manifest.engine is None:
        raise EngineLoadError(
            f"{path}: its manifest describes {manifest.kind}, not an engine; use the manifest that `edgerpn build` "
            "wrote beside the engine"
        )
    return manifest.engine


def look_here(
    spec: EngineSpec, *, library: TensorRtLibrary | None = None, device: Device | None = None, index: int = 0
) -> Here:
    """Imports the library and opens the GPU, where they are not given; what fails is told, not raised."""
    errors: list[EngineLoadError | MissingDependencyError] = []
    library_problem = device_problem = ""
    try:
        library = library or import_library(spec.library, allow_lean=spec.version_compatible)
    except (EngineLoadError, MissingDependencyError) as error:
        errors.append(error)
        library_problem = str(error)
    try:
        device = device or open_device(index)
    except (EngineLoadError, MissingDependencyError) as error:
        errors.append(error)
        device_problem = str(error)
    return Here(
        platform=this_platform(),
        library=library,
        library_problem=library_problem,
        device=device,
        device_problem=device_problem,
        error=errors[0] if errors else None,
    )


def this_platform() -> str:
    """Operating system and processor, as the manifest writes them."""
    return f"{platform.system()}-{platform.machine()}".lower()


def compare(path: Path, manifest: Manifest, here: Here) -> list[Check]:
    """Every check of an engine against a machine, the file first.

    Args:
        path: The engine file.
        manifest: Its manifest.
        here: The machine.

    Raises:
        EngineLoadError: The manifest does not describe an engine.
    """
    spec = engine_spec(path, manifest)
    checks = [_file(path, manifest), _library(spec, here, path), _gpu(spec, here, path), _platform(spec, here, path)]
    if spec.cuda is not None:
        checks.append(_driver(spec.cuda, here))
    return checks


def refuse(path: Path, checks: list[Check]) -> None:
    """Raises when a check says no.

    Raises:
        ArtifactMismatchError: With a line for each such check.
    """
    lines = [f"{check.key}: expected {check.expected}, found {check.found}. {check.advice}".rstrip()
             for check in checks if check.verdict == "no"]  # fmt: skip
    if lines:
        raise ArtifactMismatchError("\n  ".join([f"{path}: this engine cannot run here:", *lines]))


def find_onnx(path: Path, manifest: Manifest) -> Path | None:
    """The ONNX file in the engine's folder that it was built from, known by its hash."""
    wanted = manifest.provenance.onnx_sha256
    if wanted is None:
        return None
    # The likeliest name first, for hashing many files takes time.
    candidates = sorted(path.parent.glob("*.onnx"), key=lambda file: (file.stem != path.stem, file.name))
    return next((file for file in candidates if files.sha256(file) == wanted), None)


def _file(path: Path, manifest: Manifest) -> Check:
    expected, wanted_bytes = manifest.provenance.artifact_sha256 or "none", manifest.provenance.artifact_bytes
    found, num_bytes = files.sha256(path), path.stat().st_size
    is_sized = wanted_bytes is not None and wanted_bytes != num_bytes
    return Check(
        key="file (sha256)",
        expected=f"{expected[:16]}..." + (f", {wanted_bytes} bytes" if is_sized else ""),
        found=f"{found[:16]}..." + (f", {num_bytes} bytes" if is_sized else ""),
        verdict="ok" if found == expected else "no",
        advice="" if found == expected else "Copy engine and manifest of one build together, or build again.",
    )


def _library(spec: EngineSpec, here: Here, path: Path) -> Check:
    expected = f"{spec.library} {spec.library_version}"
    if spec.version_compatible:
        expected += " or newer"
    if here.library is None:
        return Check(key="library", expected=expected, found=here.library_problem, verdict="no")
    version = here.library.version
    fits = is_same_version(spec.library_version, version)
    if spec.version_compatible and spec.library == "tensorrt":
        fits = fits or runs_compatible_engine(spec.library_version, version)
    advice = f"Install that version, or: {_BUILD.format(name=path.name)}"
    return Check(
        key="library",
        expected=expected,
        found=f"{spec.library} {version}{' (lean)' if here.library.is_lean else ''}",
        verdict="ok" if fits else "no",
        advice="" if fits else advice,
    )


def _gpu(spec: EngineSpec, here: Here, path: Path) -> Check:
    expected = f"compute capability {', '.join(spec.compute_capabilities)}"
    if spec.hardware_compatible:
        expected += ", or any from 8.0"
    if spec.gpu is not None:
        expected += f" (built on {spec.gpu})"
    if here.device is None:
        return Check(key="GPU", expected=expected, found=f"none: {here.device_problem}", verdict="no")
    info = here.device.info
    fits = info.compute_capability in spec.compute_capabilities
    if spec.hardware_compatible and _times_ten(info.compute_capability) >= HARDWARE_COMPATIBLE_FROM:
        fits = True
    verdict: Verdict = "ok" if fits else "no"
    advice = _BUILD.format(name=path.name)
    if spec.library == "tensorrt-rtx":
        advice = f"Build it for this GPU as well: edgerpn build ... --compute-capability {info.compute_capability}"
        if not fits and _times_ten(info.compute_capability) > max(
            map(_times_ten, spec.compute_capabilities), default=0
        ):
            # By NVIDIA's documentation its engines also run on later GPUs than those named; not tried.
            verdict = "unknown"
    return Check(key="GPU", expected=expected, found=_describe(info), verdict=verdict, advice="" if fits else advice)


def _platform(spec: EngineSpec, here: Here, path: Path) -> Check:
    fits = here.platform == spec.platform
    verdict: Verdict = "ok" if fits else "no"
    advice = "" if fits else _BUILD.format(name=path.name)
    if not fits and spec.library == "tensorrt-rtx":
        # By NVIDIA's documentation its engines do not depend on the operating system; not tried.
        verdict, advice = "unknown", "TensorRT-RTX engines should not depend on it; if loading fails, build again here."
    return Check(key="platform", expected=spec.platform, found=here.platform, verdict=verdict, advice=advice)


def _driver(cuda: str, here: Here) -> Check:
    """CUDA's minor versions are compatible with each other; an older major version of the driver is not."""
    expected = f"CUDA {cuda.partition('.')[0]} or newer"
    if here.device is None:
        return Check(key="driver", expected=expected, found="not found out, as there is no GPU", verdict="unknown")
    found = here.device.info.driver_cuda
    fits = int(found.partition(".")[0]) >= int(cuda.partition(".")[0])
    return Check(
        key="driver",
        expected=expected,
        found=f"CUDA {found}",
        verdict="ok" if fits else "no",
        advice="" if fits else "Update the NVIDIA driver, or build with a library made for this CUDA version.",
    )


def _describe(info: DeviceInfo) -> str:
    return f"{info.name}, compute capability {info.compute_capability}"


def _times_ten(capability: str) -> int:
    major, _, minor = capability.partition(".")
    return int(major) * 10 + int(minor or 0)
