"""Builds an engine again on this machine, from the ONNX file beside it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from edgerpn.errors import ArtifactMismatchError, EngineLoadError
from edgerpn.machine import child_environment, module_command, python_problem
from edgerpn.manifest import Manifest
from edgerpn.runtime.backends.tensorrt.compatibility import engine_spec, find_onnx, read_manifest
from edgerpn.runtime.backends.tensorrt.cuda_provider import open_device
from edgerpn.targets import RTX_CAPABILITIES

_logger = logging.getLogger(__name__)
_TAIL = 15
"""Lines of a failed build in the error."""


def rebuild(path: Path, reason: ArtifactMismatchError) -> None:
    """Builds `path` again with its recorded settings, in a process of its own.

    Args:
        path: The engine to replace.
        reason: The refusal of the engine.

    Raises:
        EngineLoadError: The ONNX file is missing, `sys.executable` is not a Python, or the build failed.
        ManifestError: The engine's manifest cannot be read.
    """
    manifest = read_manifest(path)
    spec = engine_spec(path, manifest)
    onnx = find_onnx(path, manifest)
    if onnx is None:
        digest = (manifest.provenance.onnx_sha256 or "none")[:16]
        raise EngineLoadError(
            f"{path}: cannot be built again: the ONNX file that it was built from (sha256 {digest}...) is not in "
            f"{path.resolve().parent}. Copy it there, or build the engine elsewhere for this machine.\n{reason}"
        ) from reason
    problem = python_problem()
    if problem is not None:
        raise EngineLoadError(f"{path}: cannot be built again: {problem}.\n{reason}") from reason
    _logger.warning("%s: cannot run here; building it again from %s (%s)", path, onnx.name, _first_cause(reason))
    capability = open_device().info.compute_capability if spec.library == "tensorrt-rtx" else None
    words = command(onnx, path, manifest, capability)
    # It takes minutes: a terminal shows its progress, otherwise its last lines become part of the error. Its output
    # goes to standard error (2), because our own standard output may carry data.
    is_watched = sys.stderr.isatty()
    done = subprocess.run(
        words,
        stdout=2,
        stderr=None if is_watched else subprocess.PIPE,
        text=True,
        env=child_environment(),
        check=False,
    )
    if done.returncode:
        lines = ["see above"] if is_watched else done.stderr.strip().splitlines()
        tail = "\n  ".join(lines[-_TAIL:])
        raise EngineLoadError(
            f"{path}: `edgerpn build` ended with status {done.returncode}:\n  {tail}\nIt was started because of:\n"
            f"{reason}"
        ) from reason


def command(onnx: Path, path: Path, manifest: Manifest, capability: str | None) -> list[str]:
    """Returns the command that builds an engine like an existing one.

    Args:
        onnx: File to build from.
        path: File to write.
        manifest: Describes the existing engine.
        capability: Compute capability to add to those of the engine. One that TensorRT-RTX cannot build for by name
            leads to its default list; None: TensorRT builds for this GPU.
    """
    spec = engine_spec(path, manifest)
    profile = spec.profile
    words = [*module_command("edgerpn"), "build", os.fspath(onnx), "-o", os.fspath(path)]
    words += ["--backend", spec.library]
    if capability in RTX_CAPABILITIES:
        capabilities = (capability, *(other for other in spec.compute_capabilities if other != capability))
        words += [word for one in capabilities for word in ("--compute-capability", one)]
    values: dict[str, object] = {
        "batch": [profile.min_batch, profile.opt_batch, profile.max_batch] if manifest.input.batch is None else None,
        "workspace_mib": spec.workspace_mib,
        "optimization_level": spec.optimization_level,
        "dla_core": spec.dla_core,
        "tf32": "true" if spec.tf32 else None,
    }
    for name, value in values.items():
        if value is not None:
            words += ["--set", f"{name}={value}"]
    switches = {
        "--version-compatible": spec.version_compatible,
        "--hardware-compatible": spec.hardware_compatible,
    }
    return words + [name for name, is_on in switches.items() if is_on]


def _first_cause(reason: ArtifactMismatchError) -> str:
    """Returns the first line of a refusal that names a cause."""
    lines = str(reason).splitlines()
    return lines[min(1, len(lines) - 1)].strip()
