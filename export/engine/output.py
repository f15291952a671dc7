"""The files of a build: engine, golden frames, manifest and report, which appear together or not at all.

All are written under temporary names, so that a full disk shows before anything is replaced, and then renamed: golden
frames, engine, manifest. Whatever ends the process in between, the manifest that stands there describes either all of
the files or refuses one of them by its hash.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import edgerpn.golden
import edgerpn.manifest
from edgerpn import files
from edgerpn.errors import EdgeRpnError
from edgerpn.export.engine.build_report import BuildReport
from edgerpn.export.engine.preflight import report_path
from edgerpn.manifest import GoldenSpec, Manifest

Say = Callable[[str], None]
_PLACES: tuple[Callable[[Path], Path], ...] = (
    edgerpn.golden.golden_path,
    lambda engine: engine,
    edgerpn.manifest.manifest_path,
)
"""From the engine's path to that of each file, in the order in which they are renamed."""


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    """Gives a temporary path for an engine, in the folder of `output`; it and what lies beside it are gone after."""
    staged = output.with_name(f".{output.stem}.{secrets.token_hex(4)}{output.suffix}")
    try:
        yield staged
    finally:
        for place in (*_PLACES, report_path):
            place(staged).unlink(missing_ok=True)


def deliver(report: BuildReport, staged: Path, made: Manifest, onnx: Manifest, say: Say) -> Path | None:
    """Puts a finished engine in its place, with golden frames, manifest and report beside it.

    Args:
        report: Of this build; names the ONNX file and the place.
        staged: The engine, see `staging`.
        made: Its manifest, without golden frames.
        onnx: That of the ONNX file.
        say: Called with a line of text for people when something is left out.

    Returns:
        Path of the report, or None when that alone could not be written.

    Raises:
        ManifestError: The golden frames of the ONNX file are damaged.
        ArtifactMismatchError: They are those of another file.
        OSError: A file cannot be written; what was there before is there still.
    """
    output = report.engine
    golden = _stage_golden(report.onnx, onnx, staged, output, say)
    edgerpn.manifest.write(made.replace(golden=golden), staged)
    try:
        report.write(report_path(staged))
    except OSError as error:
        say(f"warning: the report of the build cannot be written: {error}")
    replace_together([(place(staged), place(output)) for place in _PLACES if place(staged).exists()])
    return _replace_report(staged, output)


def replace_together(pairs: list[tuple[Path, Path]]) -> None:
    """Renames every first path over its second one, in order; on an error all of them are put back.

    Raises:
        OSError: A file cannot be renamed.
    """
    backups = [target.with_name(f".{target.name}.{secrets.token_hex(4)}.old") for _, target in pairs]
    done: list[tuple[Path, Path]] = []
    is_whole = False
    try:
        for (new, target), backup in zip(pairs, backups, strict=True):
            if target.exists():
                _keep(target, backup)
            done.append((target, backup))
            os.replace(new, target)
        is_whole = True
    finally:
        for target, backup in reversed(done):
            if not is_whole:
                _put_back(target, backup)
            backup.unlink(missing_ok=True)


def write_failed(error: EdgeRpnError | OSError, report: BuildReport) -> None:
    """Writes the report of a build that failed, and adds a line to the error that says where it is.

    The error stays as it is when even that cannot be written.
    """
    path = report_path(report.engine)
    with contextlib.suppress(OSError):
        report.write(path, str(error))
        if isinstance(error, EdgeRpnError):
            error.args = (f"{error}\n  every line of the library is in {path}",)


def _keep(target: Path, backup: Path) -> None:
    """A second name for what stands at `target`; where the file system has none, its only one."""
    try:
        os.link(target, backup)
    except OSError:
        os.replace(target, backup)


def _put_back(target: Path, backup: Path) -> None:
    # One that cannot be put back must not keep the others from it.
    with contextlib.suppress(OSError):
        if backup.exists():
            os.replace(backup, target)
        else:
            target.unlink(missing_ok=True)


def _replace_report(staged: Path, output: Path) -> Path | None:
    """The report's turn; an older one does not stay beside a new engine."""
    try:
        if report_path(staged).exists():
            os.replace(report_path(staged), report_path(output))
            return report_path(output)
        report_path(output).unlink(missing_ok=True)
    except OSError:
        pass  # the engine is in place; its report is the least of its files
    return None


def _stage_golden(onnx_file: Path, onnx: Manifest, staged: Path, output: Path, say: Say) -> GoldenSpec | None:
    """Puts the ONNX file's golden frames beside the staged engine, when it has any."""
    if onnx.golden is None:
        return None
    source = onnx_file.parent / Path(onnx.golden.file).name
    if not source.is_file():
        say(
            f"warning: {source.name} does not lie beside {onnx_file.name}, so the engine will have no golden "
            "frames to test itself with; copy it along and build again to have them"
        )
        return None
    edgerpn.golden.read(onnx_file, onnx)  # whole, and the one that the manifest describes
    files.write_bytes(edgerpn.golden.golden_path(staged), source.read_bytes())
    return dataclasses.replace(onnx.golden, file=edgerpn.golden.golden_path(output).name)
