"""The files of a build: engine, golden frames and manifest, which appear together, and the report.

Names and room are checked before the build.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import edgerpn.golden
import edgerpn.manifest
from edgerpn import files
from edgerpn.artifact import name_problem, replace_artifact
from edgerpn.errors import BuildError, EdgeRpnError
from edgerpn.export.engine.libraries import BuildMachine
from edgerpn.export.engine.report import BuildReport, is_report, report_path
from edgerpn.machine import available_bytes
from edgerpn.manifest import GoldenSpec, Manifest

Log = Callable[[str], None]
SUFFIXES = (".engine", ".plan")
MIB = 1 << 20
SPARE_DISK_MIB = 64
HOST_MIB = 512
"""Memory that the library takes for itself while it builds, MiB; TensorRT-RTX 1.7 took 300 with a model of 6 MB."""


def check_paths(onnx_file: Path, output: Path) -> None:
    """Refuses names that cannot be written, or that would replace something else; makes the output's folder.

    Raises:
        BuildError: A suffix is wrong, the output is a folder, or its manifest or report would replace a foreign file.
    """
    if onnx_file.suffix.lower() != ".onnx":
        raise BuildError(f"{onnx_file}: expected a model.onnx that `edgerpn export` wrote")
    if output.suffix.lower() not in SUFFIXES:
        raise BuildError(f"{output}: expected a file name that ends in {' or '.join(SUFFIXES)}")
    problem = name_problem(output, report_path)
    if problem is not None:
        raise BuildError(problem)
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
        raise BuildError(f"{sidecar}: not a manifest; the engine's would overwrite it. Choose another output name")
    report = report_path(output)
    if report.exists() and not is_report(report):
        raise BuildError(f"{report}: not a build report; the new one would overwrite it. Choose another output name")


def check_room(onnx_file: Path, output: Path, machine: BuildMachine, log: Log) -> None:
    """Refuses a disk too full for the engine, and warns when memory is scarce.

    Raises:
        BuildError: The disk lacks the room that an engine of such a model may take.
    """
    size_mib = onnx_file.stat().st_size / MIB
    # An engine holds the weights, sometimes twice in two layouts, and its kernels.
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
        log(f"memory is scarce: {free_mib} MiB available, a build takes about {needed_mib} MiB; close other programs")
    if machine.gpu_free_mib is not None and machine.gpu_free_mib < needed_mib:
        log(f"memory of the GPU is scarce: {machine.gpu_free_mib} MiB free; set workspace_mib if the build fails")


def deliver(report: BuildReport, staged: Path, made: Manifest, onnx: Manifest, log: Log) -> Path | None:
    """Renames a finished engine to its final name, with golden frames, manifest and report beside it.

    Args:
        report: Of this build; names the ONNX file and the engine.
        staged: The engine, see `edgerpn.artifact.staging`; its report lies beside it too.
        made: Its manifest, without golden frames.
        onnx: The manifest of the ONNX file.
        log: Called with a line for people when something is left out.

    Returns:
        Path of the report, or None when only the report could not be written.

    Raises:
        ManifestError: The golden frames of the ONNX file are damaged.
        ArtifactMismatchError: They are those of another file.
        OSError: A file cannot be written; the older files stay.
    """
    output = report.engine
    golden = _stage_golden(report.onnx, onnx, staged, output, log)
    edgerpn.manifest.write(made.replace(golden=golden), staged)
    try:
        report.write(report_path(staged))
    except OSError as error:
        log(f"warning: the report of the build cannot be written: {error}")
    replace_artifact(staged, output)
    return _replace_report(staged, output)


def write_failure(error: EdgeRpnError | OSError, report: BuildReport) -> None:
    """Writes the report of a failed build, and adds its path to the error.

    When the report cannot be written, the error stays as it is.
    """
    path = report_path(report.engine)
    with contextlib.suppress(OSError):
        report.write(path, str(error))
        if isinstance(error, EdgeRpnError):
            error.args = (f"{error}\n  every line of the library is in {path}",)


def _replace_report(staged: Path, output: Path) -> Path | None:
    """Renames the report; an older one does not stay beside a new engine."""
    try:
        if report_path(staged).exists():
            os.replace(report_path(staged), report_path(output))
            return report_path(output)
        report_path(output).unlink(missing_ok=True)
    except OSError:
        pass  # the engine is in place, and runs without its report
    return None


def _stage_golden(onnx_file: Path, onnx: Manifest, staged: Path, output: Path, log: Log) -> GoldenSpec | None:
    """Copies the golden frames of the ONNX file, if any, beside the staged engine."""
    if onnx.golden is None:
        return None
    source = onnx_file.parent / Path(onnx.golden.file).name
    if not source.is_file():
        log(
            f"warning: {source.name} is not beside {onnx_file.name}, so the engine gets no golden frames to test "
            "itself with; copy the file there and build again"
        )
        return None
    edgerpn.golden.read(onnx_file, onnx)  # checks it against the manifest
    files.write_bytes(edgerpn.golden.golden_path(staged), source.read_bytes())
    return dataclasses.replace(onnx.golden, file=edgerpn.golden.golden_path(output).name)
