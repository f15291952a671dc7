"""Weights into a weight-stripped engine: the parent's side of `edgerpn build --refit`; see also `build_refit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import edgerpn.manifest
from edgerpn.errors import BuildError, EdgeRpnError
from edgerpn.export.engine.build import layers_of, made_now, probe
from edgerpn.export.engine.build_config import BuildConfig
from edgerpn.export.engine.build_report import BuildReport, explain, tell_notes
from edgerpn.export.engine.child import Outcome, run_worker
from edgerpn.export.engine.display import Display
from edgerpn.export.engine.libraries import Machine
from edgerpn.export.engine.output import deliver, staging, write_failed
from edgerpn.export.engine.preflight import check_paths, check_room
from edgerpn.export.engine.trial import Compare, try_engine
from edgerpn.manifest import EngineSpec, Manifest


def put_in_weights(
    stripped: Path, onnx_file: Path, output: Path, *, compare: Compare | None = None, say: Callable[[str], None]
) -> Manifest:
    """Writes a full engine from a weight-stripped one and the ONNX file that it was built from; needs a GPU.

    Args:
        stripped: An engine of `edgerpn build --weight-stripped`, with its manifest.
        onnx_file: The ONNX file that it was built from.
        output: The engine to write; not `stripped`.
        compare: Compares engine and ONNX file on photographs; None: not done.
        say: Called with one line of text for people, now and then.

    Returns:
        The manifest of the full engine, as written beside it.

    Raises:
        BuildError: The files do not belong together, the engine has its weights, or the library fails.
        ManifestError: A manifest is missing, malformed or belongs to another file.
        MissingDependencyError: The library is not installed.
    """
    check_paths(onnx_file, output)
    if output.exists() and output.samefile(stripped):
        raise BuildError(f"{output}: this is the stripped engine itself; choose another name")
    onnx, manifest = edgerpn.manifest.read(onnx_file), edgerpn.manifest.read(stripped)
    spec = _check_pair(stripped, manifest, onnx_file, onnx)
    config = _config_of(spec)
    probed = probe(config.backend, config.stall_s)
    machine = Machine(**probed["machine"])
    if machine.gpu is None:
        raise BuildError(f"{stripped}: weights can be put in only where the engine can be loaded: there is no GPU here")
    check_room(onnx_file, output, machine, say)
    digest = onnx.provenance.artifact_sha256 or ""
    report = BuildReport(onnx=onnx_file, engine=output, onnx_sha256=digest, probed=probed, config=config)
    report.notes.append(f"weights put into {stripped}, which was built with these options")
    with staging(output) as staged:
        try:
            outcome = _refit(report, stripped, staged)
            tell_notes(report, outcome, say)
            full = dataclasses.replace(spec, weight_stripped=False, **layers_of(outcome))
            made = made_now(manifest, probed).replace(name=output.stem, golden=None, parity=None, engine=full)
            made = try_engine(report, staged, made, onnx, compare=compare, say=say)
            deliver(report, staged, made, onnx, say)
        except (EdgeRpnError, OSError) as error:
            write_failed(error, report)
            raise
    return edgerpn.manifest.read(output)


def _check_pair(stripped: Path, manifest: Manifest, onnx_file: Path, onnx: Manifest) -> EngineSpec:
    """What the stripped engine was built with.

    Raises:
        BuildError: It has its weights, or it was built from another file.
    """
    spec = manifest.engine
    if spec is None or not spec.weight_stripped:
        raise BuildError(
            f"{stripped}: expected an engine that was built with --weight-stripped; this one has its weights"
        )
    if manifest.provenance.onnx_sha256 != onnx.provenance.artifact_sha256:
        raise BuildError(
            f"{stripped}: it was not built from {onnx_file}, but from another ONNX file (the hashes differ)"
        )
    return spec


def _config_of(spec: EngineSpec) -> BuildConfig:
    """The options that an engine was built with, as far as its manifest tells them."""
    is_rtx = spec.library == "tensorrt-rtx"
    return BuildConfig(
        backend=spec.library,
        compute_capabilities=spec.compute_capabilities if is_rtx else (),
        batch=(spec.profile.min_batch, spec.profile.opt_batch, spec.profile.max_batch),
        workspace_mib=spec.workspace_mib,
        optimization_level=spec.optimization_level,
        version_compatible=spec.version_compatible,
        hardware_compatible=spec.hardware_compatible,
        weight_stripped=True,
        dla_core=spec.dla_core,
        tf32=spec.tf32,
    )


def _refit(report: BuildReport, stripped: Path, staged: Path) -> Outcome:
    """Runs the child process.

    Raises:
        BuildError: It gave no engine.
    """
    request = {
        "command": "refit",
        "library": report.probed["library"],
        "stripped": str(stripped.resolve()),
        "onnx": str(report.onnx.resolve()),
        "plan": str(staged.resolve()),
    }
    with Display(f"refitting {report.engine.name}") as display:
        outcome = run_worker(request, on_event=display.event, tick=display.tick, stall_s=report.config.stall_s)
    report.tries.append((report.config, outcome))
    if "built" not in outcome.events:
        raise BuildError(f"{stripped}: {explain(outcome, report.config, has_gpu=True)}")
    return outcome
