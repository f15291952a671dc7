"""Compatibility of an engine with this machine: one check for each thing that must fit, with a verdict and advice.

`edgerpn inspect` prints the checks, and a loader that refuses an engine quotes them.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgerpn import files
from edgerpn import manifest as manifests
from edgerpn.errors import ArtifactMismatchError, EngineLoadError, ManifestError, MissingDependencyError
from edgerpn.machine import board_model
from edgerpn.manifest import EngineSpec, Manifest
from edgerpn.runtime.backends.tensorrt.cuda import Device
from edgerpn.runtime.backends.tensorrt.cuda_provider import open_device
from edgerpn.runtime.backends.tensorrt.library import TensorRtLibrary, import_library, make_runtime
from edgerpn.targets import (
    HARDWARE_COMPATIBLE_FROM,
    RTX_CAPABILITIES,
    RTX_DEFAULT_CAPABILITIES,
    capability_number,
    is_same_version,
    runs_compatible_engine,
)

Verdict = Literal["ok", "no", "unknown"]
Problem = EngineLoadError | MissingDependencyError

_BUILD = "Build it again on this machine: edgerpn build MODEL.onnx -o {name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CompatibilityCheck:
    """One thing that an artifact needs, compared with this machine."""

    key: str
    """Thing that is compared."""
    expected: str
    """Value that the artifact needs."""
    found: str
    """Value on this machine."""
    verdict: Verdict
    """no: the artifact cannot run; unknown: this machine cannot tell."""
    advice: str = ""
    """Steps to take when it is not ok."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineHost:
    """The parts of a machine that an engine needs; a part that does not work is the error it raised."""

    platform: str
    """Operating system and processor, such as linux-x86_64."""
    library: TensorRtLibrary | Problem
    """The library that runs the engine."""
    device: Device | Problem
    """The GPU."""
    board: str | None = None
    """Name of the board; None on a PC."""


def query_machine(
    spec: EngineSpec, *, library: TensorRtLibrary | None = None, device: Device | None = None
) -> EngineHost:
    """Imports the library and opens the first GPU, where they are not given; errors are kept, not raised."""
    found_library: TensorRtLibrary | Problem
    found_device: Device | Problem
    try:
        found_library = library or import_library(spec.library, allow_lean=spec.version_compatible)
    except (EngineLoadError, MissingDependencyError) as error:
        found_library = error
    try:
        found_device = device or open_device()
    except (EngineLoadError, MissingDependencyError) as error:
        found_device = error
    return EngineHost(platform=this_platform(), library=found_library, device=found_device, board=board_model())


def this_platform() -> str:
    """Operating system and processor, as manifests name them."""
    return f"{platform.system()}-{platform.machine()}".lower()


def read_manifest(path: Path) -> Manifest:
    """Reads the manifest beside an engine without checking the engine's hash, which `compare` checks.

    Raises:
        ManifestError: The engine or its manifest is missing, or the manifest is malformed.
    """
    sidecar = manifests.manifest_path(path)
    for file, role in ((path, "the engine"), (sidecar, f"the manifest of {path.name}")):
        if not file.is_file():
            raise ManifestError(f"{file}: {role} is missing")
    try:
        text = sidecar.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{sidecar}: cannot be read: {error}") from error
    return manifests.parse(text, source=str(sidecar))


def engine_spec(path: Path, manifest: Manifest) -> EngineSpec:
    """Returns the part of a manifest that describes an engine.

    Raises:
        EngineLoadError: The manifest describes something else.
    """
    if manifest.kind != "engine" or manifest.engine is None:
        raise EngineLoadError(
            f"{path}: its manifest describes {manifest.kind}, not an engine; use the manifest that `edgerpn build` "
            "wrote beside the engine"
        )
    return manifest.engine


def compare(path: Path, manifest: Manifest, host: EngineHost) -> list[CompatibilityCheck]:
    """Compares the engine file at `path` and its manifest with a machine; the check of the file comes first.

    Raises:
        EngineLoadError: The manifest does not describe an engine.
    """
    spec = engine_spec(path, manifest)
    checks = [_file(path, manifest), _library(spec, host, path), _gpu(spec, host, path), _platform(spec, host, path)]
    if spec.cuda is not None:
        checks.append(_driver(spec.cuda, host))
    return [*checks, *_module(spec, host, path), *_validity(path, host)]


def doubts(checks: list[CompatibilityCheck]) -> list[str]:
    """Describes the checks that leave open whether the engine runs, a line for each."""
    return [
        f"{check.key}: expected {check.expected}, found {check.found}. {check.advice}".rstrip()
        for check in checks
        if check.verdict == "unknown"
    ]


def refuse(path: Path, checks: list[CompatibilityCheck]) -> None:
    """Raises when a check says no.

    Raises:
        ArtifactMismatchError: With a line for each such check.
    """
    lines = [f"{check.key}: expected {check.expected}, found {check.found}. {check.advice}".rstrip()
             for check in checks if check.verdict == "no"]  # fmt: skip
    if lines:
        raise ArtifactMismatchError("\n  ".join([f"{path}: this engine cannot run here:", *lines]))


def find_onnx(path: Path, manifest: Manifest) -> Path | None:
    """Finds the ONNX file in the engine's folder that it was built from, by its hash."""
    wanted = manifest.provenance.onnx_sha256
    if wanted is None:
        return None
    # The likeliest name first, because hashing many files takes time.
    candidates = sorted(path.parent.glob("*.onnx"), key=lambda file: (file.stem != path.stem, file.name))
    return next((file for file in candidates if files.sha256(file) == wanted), None)


def _file(path: Path, manifest: Manifest) -> CompatibilityCheck:
    expected, wanted_bytes = manifest.provenance.artifact_sha256 or "none", manifest.provenance.artifact_bytes
    found, num_bytes = files.sha256(path), path.stat().st_size
    has_other_size = wanted_bytes is not None and wanted_bytes != num_bytes
    return CompatibilityCheck(
        key="file (sha256)",
        expected=f"{expected[:16]}..." + (f", {wanted_bytes} bytes" if has_other_size else ""),
        found=f"{found[:16]}..." + (f", {num_bytes} bytes" if has_other_size else ""),
        verdict="ok" if found == expected else "no",
        advice="" if found == expected else "Copy engine and manifest of one build together, or build again.",
    )


def _library(spec: EngineSpec, host: EngineHost, path: Path) -> CompatibilityCheck:
    expected = f"{spec.library} {spec.library_version}"
    if spec.version_compatible:
        expected += " or newer"
    if isinstance(host.library, Problem):
        return CompatibilityCheck(key="library", expected=expected, found=str(host.library), verdict="no")
    version = host.library.version
    fits = is_same_version(spec.library_version, version)
    if spec.version_compatible and spec.library == "tensorrt":
        fits = fits or runs_compatible_engine(spec.library_version, version)
    return CompatibilityCheck(
        key="library",
        expected=expected,
        found=f"{spec.library} {version}{' (lean)' if host.library.is_lean else ''}",
        verdict="ok" if fits else "no",
        advice="" if fits else f"Install that version, or: {_BUILD.format(name=path.name)}",
    )


def _gpu(spec: EngineSpec, host: EngineHost, path: Path) -> CompatibilityCheck:
    expected = f"compute capability {', '.join(spec.compute_capabilities)}"
    if spec.hardware_compatible:
        expected += ", or any from 8.0"
    if spec.gpu is not None:
        expected += f" (built on {spec.gpu})"
    if isinstance(host.device, Problem):
        return CompatibilityCheck(key="GPU", expected=expected, found=f"none: {host.device}", verdict="no")
    capability = host.device.info.compute_capability
    found = f"{host.device.info.name}, compute capability {capability}"
    if spec.library == "tensorrt-rtx":
        verdict, advice = _rtx_verdict(spec, capability)
        return CompatibilityCheck(key="GPU", expected=expected, found=found, verdict=verdict, advice=advice)
    is_recent = capability_number(capability) >= HARDWARE_COMPATIBLE_FROM
    fits = capability in spec.compute_capabilities or (spec.hardware_compatible and is_recent)
    return CompatibilityCheck(
        key="GPU",
        expected=expected,
        found=found,
        verdict="ok" if fits else "no",
        advice="" if fits else _BUILD.format(name=path.name),
    )


def _rtx_verdict(spec: EngineSpec, capability: str) -> tuple[Verdict, str]:
    """Verdict and advice for an engine of TensorRT-RTX on a GPU of a compute capability."""
    number, built = capability_number(capability), set(spec.compute_capabilities)
    if number < HARDWARE_COMPATIBLE_FROM:
        return (
            "no",
            "TensorRT-RTX returns wrong products of our graphs before 8.0; run the ONNX file with CUDA instead.",
        )
    if capability in built:
        return "ok", ""
    advice = "Build it without --compute-capability, for every GPU that TensorRT-RTX supports."
    if capability in RTX_CAPABILITIES:
        advice = f"Build it for this GPU as well: edgerpn build ... --compute-capability {capability}"
    if built == set(RTX_DEFAULT_CAPABILITIES):
        # NVIDIA's documentation names these "and later"; 8.7, 9.0 and 11.0 are neither in its list nor excluded.
        return "unknown", "NVIDIA does not name this GPU; the library decides when the engine is loaded."
    # By the documentation, engines also run on later GPUs than those named; not tried.
    return ("unknown" if number > max(map(capability_number, built)) else "no"), advice


def _validity(path: Path, host: EngineHost) -> list[CompatibilityCheck]:
    """Queries TensorRT-RTX about the engine's header; one check where it can answer.

    Its no is only a doubt: on a GPU of compute capability 10.0 it calls engines invalid that it then runs (reported for
    TensorRT-RTX in NVIDIA's cookbook; not tried here).
    """
    if isinstance(host.library, Problem) or isinstance(host.device, Problem):
        return []
    module = host.library.module
    if not hasattr(module.Runtime, "get_engine_validity"):
        return []
    try:
        with host.device.active(), path.open("rb") as file:
            runtime = make_runtime(module)
            validity, bits = runtime.get_engine_validity(file.read(runtime.engine_header_size))
    except EngineLoadError as error:
        return [CompatibilityCheck(key="library's verdict", expected="VALID", found=str(error), verdict="no")]
    reasons = [name for name, flag in module.EngineInvalidityDiagnostics.__members__.items() if int(flag) & bits]
    is_valid = validity == module.EngineValidity.VALID
    return [
        CompatibilityCheck(
            key="library's verdict",
            expected="VALID",
            found=f"{validity.name} ({', '.join(reasons)})" if reasons else str(validity.name),
            verdict="ok" if is_valid else "unknown",
            advice="" if is_valid else "The library has called engines invalid that it then ran; loading it decides.",
        )
    ]


def _module(spec: EngineSpec, host: EngineHost, path: Path) -> list[CompatibilityCheck]:
    """Compares multiprocessors and board where the build recorded them: Orin modules share name and capability."""
    if spec.library != "tensorrt" or spec.hardware_compatible or isinstance(host.device, Problem):
        return []
    here = host.device.info.multiprocessors
    pairs = (("multiprocessors", spec.multiprocessors, here), ("board", spec.board, host.board))
    return [
        CompatibilityCheck(
            key=key,
            expected=str(expected),
            found=str(found or "unknown"),
            verdict="ok" if found == expected else "unknown",
            advice="" if found == expected else _other_module(found, path),
        )
        for key, expected, found in pairs
        if expected is not None
    ]


def _other_module(found: object, path: Path) -> str:
    if found is None:
        return (
            "Nothing here names it; in a container: docker run -v /proc/device-tree/model:/tmp/nv_jetson_model:ro ..."
        )
    return (
        f"It may run slowly here, or fail: its kernels were chosen on another module. {_BUILD.format(name=path.name)}"
    )


def _platform(spec: EngineSpec, host: EngineHost, path: Path) -> CompatibilityCheck:
    fits = host.platform == spec.platform
    verdict: Verdict = "ok" if fits else "no"
    advice = "" if fits else _BUILD.format(name=path.name)
    if not fits and spec.library == "tensorrt-rtx":
        # By NVIDIA's documentation its engines do not depend on the operating system; not tried.
        verdict, advice = "unknown", "TensorRT-RTX engines should not depend on it; if loading fails, build again here."
    return CompatibilityCheck(
        key="platform", expected=spec.platform, found=host.platform, verdict=verdict, advice=advice
    )


def _driver(cuda: str, host: EngineHost) -> CompatibilityCheck:
    """CUDA's minor versions are compatible with each other; an older major version of the driver is not."""
    expected = f"CUDA {cuda.partition('.')[0]} or newer"
    if isinstance(host.device, Problem):
        found = "unknown, because there is no GPU"
        return CompatibilityCheck(key="driver", expected=expected, found=found, verdict="unknown")
    found = host.device.info.driver_cuda
    fits = int(found.partition(".")[0]) >= int(cuda.partition(".")[0])
    return CompatibilityCheck(
        key="driver",
        expected=expected,
        found=f"CUDA {found}",
        verdict="ok" if fits else "no",
        advice="" if fits else "Update the NVIDIA driver, or build with a library made for this CUDA version.",
    )
