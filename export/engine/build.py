"""Builds a TensorRT engine from an ONNX file, with its manifest, golden frames and a report of the build.

Steps of `build_engine`:
    1. Check names, the ONNX file's manifest, whether library and graph fit each other, and room on the disk.
    2. Build in a child process; when memory runs out, again with less (`BuildConfig.attempts`).
    3. Run the engine, where a GPU can.
    4. Rename engine, golden frames, manifest and report to their final names.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import edgerpn.manifest
from edgerpn import settings
from edgerpn.artifact import staging
from edgerpn.errors import BuildError, EdgeRpnError, MissingDependencyError
from edgerpn.export.engine.cache import timing_cache_file
from edgerpn.export.engine.libraries import BuildEnvironment
from edgerpn.export.engine.options import DEFAULT_STALL_S, Backend, BuildConfig
from edgerpn.export.engine.output import check_paths, check_room, deliver, write_failure
from edgerpn.export.engine.process import BuildOutcome, run_worker
from edgerpn.export.engine.progress import ProgressDisplay
from edgerpn.export.engine.report import BuildReport, explain, note_omissions, report_path
from edgerpn.export.engine.trial import Compare, try_engine
from edgerpn.machine import is_jetson
from edgerpn.manifest import EngineSpec, Manifest
from edgerpn.manifest.parts import LayerSpec, ProfileSpec
from edgerpn.models import find_model
from edgerpn.runtime.backends.contract import refuse_layout
from edgerpn.targets import RTX_DEFAULT_CAPABILITIES, EngineLibrary, target_of

Log = Callable[[str], None]
_DLA_WARNING = (
    "warning: dla_core is experimental: NVIDIA documents strongly typed networks on a DLA only for TensorRT 11.4.1 and "
    "newer on AGX Orin with JetPack 7.2.2, and layers that it cannot run move to the GPU in silence"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildResult:
    """The product of a build."""

    manifest: Manifest
    """As written beside the engine."""
    report: Path | None
    """Report of the build; None when only the report could not be written."""
    num_bytes: int
    """Size of the engine."""


def build_engine(
    onnx_file: str | os.PathLike[str],
    output: str | os.PathLike[str],
    config: BuildConfig | None = None,
    *,
    compare: Compare | None = None,
    log: Log = lambda _: None,
) -> BuildResult:
    """Builds an engine; `output` appears only when it is complete, and has passed its trial where a GPU can run it.

    Blocks until the child process that builds has ended; an interrupt kills it and leaves no files.

    Args:
        onnx_file: A model.onnx of `edgerpn export`, with its manifest; or the name of an installed model.
        output: The .engine or .plan file to write.
        config: Library and options; None: the defaults.
        compare: Compares engine and ONNX file on photographs, where a GPU can run the engine; None: no comparison.
        log: Called with lines for people.

    Raises:
        BuildError: The graph does not fit the library, or the library fails; quotes its last errors.
        EngineLoadError: No model of such a name is installed, or the graph is for another program.
        ManifestError: The ONNX file's manifest is missing, malformed or belongs to another file.
        MissingDependencyError: The library is not installed.
        SelfTestError: The engine runs here, but returns other proposals than expected.
    """
    onnx_file, output, config = find_model(onnx_file), Path(output), config or BuildConfig()
    check_paths(onnx_file, output)  # step 1
    manifest = edgerpn.manifest.read(onnx_file)
    refuse_layout(onnx_file, manifest)
    environment = probe(config.backend, config.stall_s)
    library, version, gpu = environment.library, environment.version, environment.machine.gpu
    if config.hardware_compatible and (environment.machine.l4t is not None or is_jetson()):
        raise BuildError(
            f"{output}: hardware_compatible: TensorRT has no hardware-compatible engines on a Jetson (Jetson Linux "
            f"{environment.machine.l4t or 'of unknown release'} here); leave it out, and build on each kind of module"
        )
    for line in (*environment.notes, check_graph(onnx_file, manifest, library, version, config)):
        if line:
            log(line)
    check_room(onnx_file, output, environment.machine, log)
    log(f"building with {library} {version}" + (f" on {gpu}" if gpu else ""))
    digest = manifest.provenance.artifact_sha256 or ""
    report = BuildReport(onnx=onnx_file, engine=output, onnx_sha256=digest, environment=environment, config=config)
    with staging(output, report_path) as staged:
        try:
            used, outcome = _escalate(report, staged, log)  # step 2
            made = _manifest(manifest, report, used, outcome)
            note_omissions(report, outcome, log)
            made = try_engine(report, staged, made, manifest, compare=compare, log=log)  # step 3
            written = deliver(report, staged, made, manifest, log)  # step 4
        except (EdgeRpnError, OSError) as error:
            write_failure(error, report)
            raise
    return BuildResult(
        manifest=edgerpn.manifest.read(output),
        report=written,
        num_bytes=output.stat().st_size,
    )


def check_graph(
    onnx_file: Path, manifest: Manifest, library: EngineLibrary, version: str, config: BuildConfig
) -> str | None:
    """Refuses graphs that the library cannot build, before the library reads them.

    Returns:
        A line for people: warnings, or the reason why operations were not checked.

    Raises:
        BuildError: The manifest, an option or an operation in the graph does not fit the library.
    """
    if manifest.kind != "onnx":
        raise BuildError(f"{onnx_file}: its manifest says that it is an engine; build from the model.onnx")
    problems = config.problems(library)
    fixed = manifest.input.batch
    if fixed is not None and config.batch not in (None, (fixed, fixed, fixed)):
        problems.append(f"batch: the graph has a fixed batch of {fixed}; leave it out, or export with --batch dynamic")
    if config.dla_core is not None:
        problems += _dla_problems(manifest)
    if problems:
        raise BuildError(f"{onnx_file}: cannot be built with {library}:\n  " + "\n  ".join(problems))
    if manifest.proposals.nms == "standard" and library == "tensorrt-rtx":
        raise BuildError(
            f"{onnx_file}: it was exported for {manifest.target} with the standard NMS, an operation that TensorRT-RTX "
            "does not have; export it again with --target tensorrt-rtx"
        )
    lines = (
        _DLA_WARNING if config.dla_core is not None else None,
        _check_operations(onnx_file, manifest, library, version),
    )
    return "\n".join(line for line in lines if line) or None


def _dla_problems(manifest: Manifest) -> list[str]:
    """Returns the reasons why a DLA cannot run a graph, by TensorRT 11.4.1's documentation (Working with DLA)."""
    problems = []
    if manifest.input.batch is None:
        problems.append("dla_core: a DLA has no dynamic batch; export with --batch 1")
    if manifest.precision == "fp32":
        problems.append("dla_core: a DLA computes in fp16 and int8 only; export with --precision fp16")
    return problems


def _check_operations(onnx_file: Path, manifest: Manifest, library: EngineLibrary, version: str) -> str | None:
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


def probe(backend: Backend, stall_s: float = DEFAULT_STALL_S) -> BuildEnvironment:
    """Finds the library and the machine that a build would use, in a child process.

    Args:
        backend: The library, or auto.
        stall_s: See `BuildConfig`; importing a library may hang too, in a driver that does not answer.

    Raises:
        BuildError: The library is installed and does not work here.
        MissingDependencyError: It is not installed.
    """
    request = {"command": "probe", "backend": backend}
    outcome = run_worker(request, on_event=lambda _: None, tick=lambda: None, stall_s=stall_s)
    if "probed" in outcome.events:
        values = {key: value for key, value in outcome.events["probed"].items() if key != "event"}
        return settings.from_dict(BuildEnvironment, values, source="probed")
    failed = outcome.events.get("failed", {})
    if failed.get("kind") == "dependency":
        raise MissingDependencyError(failed["message"])
    if failed:
        raise BuildError(outcome.describe_end())
    printed = f"\n  it printed: {outcome.printed.splitlines()[-1]}" if outcome.printed else ""
    raise BuildError(f"importing the library failed: {outcome.describe_end()}{printed}")


def _escalate(report: BuildReport, staged: Path, log: Log) -> tuple[BuildConfig, BuildOutcome]:
    """Builds, and tries again with less memory each time that it ran out.

    Raises:
        BuildError: The last try failed.
    """
    attempts = report.config.attempts()
    has_gpu = report.environment.machine.gpu is not None
    cache, note = timing_cache_file(report.config, report.environment)
    if note:
        report.note(note, log)
    for number, config in enumerate(attempts):
        if number:
            ended = report.tries[-1][1]
            reason = "out of memory" if ended.stalled_s is None else "the builder stalled with memory short"
            report.note(f"{reason}; trying again with {config.describe()}", log)
        outcome = _build_once(report, config, staged, cache, has_gpu=has_gpu)
        report.tries.append((config, outcome))
        if "built" in outcome.events:
            return config, outcome
        if not outcome.is_out_of_memory:
            break
    text = explain(outcome)
    times = f" ({len(report.tries)} tries, each with less memory)" if len(report.tries) > 1 else ""
    raise BuildError(f"{report.onnx}: no engine was built{times}: {text}")


def _build_once(
    report: BuildReport, config: BuildConfig, staged: Path, cache: str | None, *, has_gpu: bool
) -> BuildOutcome:
    request = {
        "command": "build",
        "library": report.environment.library,
        "onnx": str(report.onnx.resolve()),
        "plan": str(staged.resolve()),
        "timing_cache": cache,
        "has_gpu": has_gpu,
        "config": settings.to_dict(config),
    }
    with ProgressDisplay(f"building {report.engine.name}") as display:
        return run_worker(request, on_event=display.event, tick=display.tick, stall_s=config.stall_s)


def _manifest(onnx: Manifest, report: BuildReport, used: BuildConfig, outcome: BuildOutcome) -> Manifest:
    """Returns the manifest of the engine, without golden frames and parity."""
    environment = report.environment
    versions = {**dict(onnx.provenance.versions), environment.library: environment.version}
    provenance = dataclasses.replace(
        onnx.provenance,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        onnx_sha256=report.onnx_sha256,
        versions=tuple(sorted(versions.items())),
    )
    return onnx.replace(
        schema=edgerpn.manifest.SCHEMA,
        name=report.engine.stem,
        kind="engine",
        target=environment.library,
        provenance=provenance,
        parity=None,
        golden=None,
        engine=_engine_spec(report, used, outcome),
    )


def _engine_spec(report: BuildReport, used: BuildConfig, outcome: BuildOutcome) -> EngineSpec:
    environment, machine, built = report.environment, report.environment.machine, outcome.events["built"]
    smallest, tuned, largest = built["batch"]
    capabilities = used.compute_capabilities or RTX_DEFAULT_CAPABILITIES
    if environment.library == "tensorrt":
        capabilities = (machine.compute_capability or "",)
    found = outcome.events.get("layers", {})
    return EngineSpec(
        library=environment.library,
        library_version=environment.version,
        compute_capabilities=capabilities,
        platform=machine.platform,
        profile=ProfileSpec(min_batch=smallest, opt_batch=tuned, max_batch=largest),
        gpu=machine.gpu,
        multiprocessors=machine.multiprocessors,
        board=machine.board,
        power_mode=machine.power_mode,
        driver=machine.driver,
        cuda=environment.cuda,
        l4t=machine.l4t,
        version_compatible=used.version_compatible,
        hardware_compatible=used.hardware_compatible,
        tf32=used.tf32,
        dla_core=used.dla_core,
        optimization_level=used.optimization_level,
        workspace_mib=used.workspace_mib,
        build_s=built["build_s"],
        num_layers=found.get("num_layers"),
        layers=tuple(LayerSpec(**layer) for layer in found.get("layers", [])),
    )
