"""What can be known before an engine is built: names, room, and whether the graph fits the library."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import edgerpn.manifest
from edgerpn.errors import BuildError
from edgerpn.export.engine.build_config import BuildConfig
from edgerpn.export.engine.libraries import Machine
from edgerpn.machine import available_bytes
from edgerpn.manifest import Manifest
from edgerpn.targets import EngineLibrary, target_of

SUFFIXES = (".engine", ".plan")
MIB = 1 << 20
SPARE_DISK_MIB = 64
HOST_MIB = 512
"""Memory that the library takes for itself while it builds, MiB; TensorRT-RTX 1.7 took 300 with a model of 6 MB."""


def report_path(output: Path) -> Path:
    """Path of the report of a build: model.engine.build.json for model.engine."""
    return Path(f"{output}.build.json")


def check_paths(onnx_file: Path, output: Path) -> None:
    """Refuses names that cannot be written, or that would replace something else; makes the output's folder.

    Raises:
        BuildError: A name is no engine's or a folder's, or its manifest or report would replace a foreign file.
    """
    if onnx_file.suffix.lower() != ".onnx":
        raise BuildError(f"{onnx_file}: expected a model.onnx that `edgerpn export` wrote")
    if output.suffix.lower() not in SUFFIXES:
        raise BuildError(f"{output}: expected a file name that ends in {' or '.join(SUFFIXES)}")
    if output.is_dir():
        raise BuildError(f"{output}: this is a folder, expected the name of a file")
    output.parent.mkdir(parents=True, exist_ok=True)
    sidecar = edgerpn.manifest.manifest_path(output)
    if sidecar.resolve() == edgerpn.manifest.manifest_path(onnx_file).resolve():
        raise BuildError(
            f"{output}: its manifest would be {sidecar.name}, which is that of {onnx_file.name}; choose another "
            f"name or folder, such as {output.with_name(output.stem + '-engine' + output.suffix)}"
        )
    if sidecar.exists() and not edgerpn.manifest.is_manifest(sidecar):
        raise BuildError(f"{sidecar}: the manifest would replace this file, which is none; choose another name")
    report = report_path(output)
    if report.exists() and not _is_report(report):
        raise BuildError(f"{report}: the report would replace this file, which is none; choose another name")


def _is_report(file: Path) -> bool:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "result" in values and "tries" in values


def check_graph(
    onnx_file: Path, manifest: Manifest, library: EngineLibrary, version: str, config: BuildConfig
) -> str | None:
    """Refuses graphs that the library cannot build, before it sees them.

    Returns:
        A line for people, when the check of operations was left out.

    Raises:
        BuildError: The manifest, or an operation in the graph, says that it does not fit.
    """
    if manifest.kind != "onnx":
        raise BuildError(f"{onnx_file}: its manifest says that it is an engine; build from the model.onnx")
    problems = config.problems(library)
    fixed = manifest.input.batch
    if fixed is not None and config.batch not in (None, (fixed, fixed, fixed)):
        problems.append(f"batch: the graph has a fixed batch of {fixed}; leave it out, or export with --batch dynamic")
    if problems:
        raise BuildError(f"{onnx_file}: cannot be built with {library}:\n  " + "\n  ".join(problems))
    if manifest.proposals.nms == "standard" and library == "tensorrt-rtx":
        raise BuildError(
            f"{onnx_file}: it was exported for {manifest.target} with the standard NMS, an operation that TensorRT-RTX "
            "does not have; export it again with --target tensorrt-rtx"
        )
    return _lint(onnx_file, manifest, library, version)


def _lint(onnx_file: Path, manifest: Manifest, library: EngineLibrary, version: str) -> str | None:
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        return f"operations are not checked against the library's limits: the module {missing[0]} is not installed here"
    from edgerpn.export.limits.check import find_violations

    target = target_of(library, version)
    violations = find_violations(onnx_file, target, manifest)
    errors = [violation.text() for violation in violations if violation.severity == "error"]
    if errors:
        raise BuildError(f"{onnx_file}: {target} cannot build this graph:\n  " + "\n  ".join(errors))
    return "\n".join(violation.text() for violation in violations) or None


def check_room(onnx_file: Path, output: Path, machine: Machine, say: Callable[[str], None]) -> None:
    """Refuses a disk too full for the engine, and says when memory is scarce.

    Raises:
        BuildError: The folder has not the room that an engine of such a model takes.
    """
    size_mib = onnx_file.stat().st_size / MIB
    # An engine holds the weights, at times twice in two layouts, and its kernels.
    needed_mib = round(2 * size_mib) + SPARE_DISK_MIB
    free_mib = shutil.disk_usage(output.parent).free // MIB
    if free_mib < needed_mib:
        raise BuildError(
            f"{output.parent}: {free_mib} MiB free, and an engine of this model may take {needed_mib} MiB with its "
            "report; make room, or choose another folder"
        )
    needed_mib = round(4 * size_mib) + HOST_MIB
    available = available_bytes()
    if available is not None and available >> 20 < needed_mib:
        free_mib = available >> 20
        say(f"memory is scarce: {free_mib} MiB available, a build takes about {needed_mib} MiB; close other programs")
    if machine.gpu_free_mib is not None and machine.gpu_free_mib < needed_mib:
        say(f"memory of the GPU is scarce: {machine.gpu_free_mib} MiB free; set workspace_mib if the build fails")
