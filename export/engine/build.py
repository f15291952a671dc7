"""ONNX to a TensorRT engine, with its manifest, golden frames and a report of the build.

Steps of `build_engine`:
    1. Check names, the ONNX file's manifest, whether library and graph fit each other, and room on the disk.
    2. Build in a child process; when memory runs out, again with less (`BuildConfig.ladder`).
    3. Try the engine, where a GPU can run it.
    4. Put engine, golden frames, manifest and report in their places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import edgerpn.manifest
from edgerpn import settings
from edgerpn.errors import BuildError, EdgeRpnError, MissingDependencyError
from edgerpn.export.engine.build_config import DEFAULT_STALL_S, Backend, BuildConfig
from edgerpn.export.engine.build_report import BuildReport, explain, tell_notes
from edgerpn.export.engine.child import Outcome, run_worker
from edgerpn.export.engine.display import Display
from edgerpn.export.engine.libraries import Machine
from edgerpn.export.engine.output import deliver, staging, write_failed
from edgerpn.export.engine.preflight import check_graph, check_paths, check_room
from edgerpn.export.engine.timing_cache import timing_cache_file
from edgerpn.export.engine.trial import Compare, try_engine
from edgerpn.manifest import EngineSpec, Manifest
from edgerpn.manifest.parts import LayerSpec, ProfileSpec

Say = Callable[[str], None]
RTX_DEFAULT_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
"""What TensorRT-RTX builds for when it is not told; by its documentation (CPU-Only AOT), these and later ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildResult:
    """What a build produced."""

    manifest: Manifest
    """As written beside the engine."""
    report: Path | None
    """Report of the build; nothing when it alone could not be written."""
    num_bytes: int
    """Size of the engine."""
    num_tries: int
    """Builds until one had enough memory."""


def build_engine(
    onnx_file: Path, output: Path, config: BuildConfig, *, compare: Compare | None = None, say: Say = lambda _: None
) -> BuildResult:
    """Builds an engine; `output` appears only when it is whole, and has passed where a GPU can run it.

    Blocks until the child process that builds has ended; an interrupt kills it and leaves no files.

    Args:
        onnx_file: A model.onnx of `edgerpn export`, with its manifest.
        output: The .engine or .plan file to write.
        config: Library and options.
        compare: Compares engine and ONNX file on photographs, where a GPU can run the engine; None: not done.
        say: Called with one line of text for people, now and then.

    Raises:
        BuildError: The graph does not fit the library, or the library fails; quotes its last errors.
        ManifestError: The ONNX file's manifest is missing, malformed or belongs to another file.
        MissingDependencyError: The library is not installed.
        SelfTestError: The engine runs here, but gives other proposals than it should.
    """
    check_paths(onnx_file, output)  # step 1
    manifest = edgerpn.manifest.read(onnx_file)
    probed = probe(config.backend, config.stall_s)
    machine = Machine(**probed["machine"])
    for line in (*probed["notes"], check_graph(onnx_file, manifest, probed["library"], probed["version"], config)):
        if line:
            say(line)
    check_room(onnx_file, output, machine, say)
    say(f"building with {probed['library']} {probed['version']}" + (f" on {machine.gpu}" if machine.gpu else ""))
    digest = manifest.provenance.artifact_sha256 or ""
    report = BuildReport(onnx=onnx_file, engine=output, onnx_sha256=digest, probed=probed, config=config)
    with staging(output) as staged:
        try:
            used, outcome = _climb(report, staged, say)  # step 2
            made = _manifest(manifest, report, used, outcome)
            tell_notes(report, outcome, say)
            made = try_engine(report, staged, made, manifest, compare=compare, say=say)  # step 3
            written = deliver(report, staged, made, manifest, say)  # step 4
        except (EdgeRpnError, OSError) as error:
            write_failed(error, report)
            raise
    return BuildResult(
        manifest=edgerpn.manifest.read(output),
        report=written,
        num_bytes=output.stat().st_size,
        num_tries=len(report.tries),
    )


def probe(backend: Backend, stall_s: float = DEFAULT_STALL_S) -> dict[str, Any]:
    """Library, version and machine that a build would use, found out in a child process; see `build_worker`.

    Args:
        backend: Which library, or auto.
        stall_s: See `BuildConfig`; importing a library may hang too, in a driver that does not answer.

    Raises:
        BuildError: The library is installed and does not work here.
        MissingDependencyError: It is not installed.
    """
    request = {"command": "probe", "backend": backend}
    outcome = run_worker(request, on_event=lambda _: None, tick=lambda: None, stall_s=stall_s)
    if "probed" in outcome.events:
        return outcome.events["probed"]
    failed = outcome.events.get("failed", {})
    if failed.get("kind") == "dependency":
        raise MissingDependencyError(failed["message"])
    printed = f"\n  it printed: {outcome.printed.splitlines()[-1]}" if outcome.printed and not failed else ""
    raise BuildError(
        f"{outcome.describe_end()}{printed}"
        if failed
        else f"importing the library failed: {outcome.describe_end()}{printed}"
    )


def _climb(report: BuildReport, staged: Path, say: Say) -> tuple[BuildConfig, Outcome]:
    """Builds, with less memory after each try that ran out of it.

    Raises:
        BuildError: The last try failed.
    """
    ladder = report.config.ladder()
    has_gpu = report.probed["machine"]["gpu"] is not None
    cache, note = timing_cache_file(report.config, report.probed)
    if note:
        report.tell(note, say)
    for number, config in enumerate(ladder):
        if number:
            ended = report.tries[-1][1]
            reason = "out of memory" if ended.stood_still_s is None else "the builder stood still with memory short"
            report.tell(f"{reason}; trying again with {config.describe()}", say)
        outcome = _build_once(report, config, staged, cache, has_gpu=has_gpu)
        report.tries.append((config, outcome))
        if "built" in outcome.events:
            return config, outcome
        if not outcome.is_out_of_memory:
            break
    text = explain(outcome)
    times = f" ({len(report.tries)} tries, each with less memory)" if len(report.tries) > 1 else ""
    raise BuildError(f"{report.onnx}: no engine was built{times}: {text}")


def _build_once(report: BuildReport, config: BuildConfig, staged: Path, cache: str | None, *, has_gpu: bool) -> Outcome:
    request = {
        "command": "build",
        "library": report.probed["library"],
        "onnx": str(report.onnx.resolve()),
        "plan": str(staged.resolve()),
        "timing_cache": cache,
        "has_gpu": has_gpu,
        "config": settings.to_dict(config),
    }
    with Display(f"building {report.engine.name}") as display:
        return run_worker(request, on_event=display.event, tick=display.tick, stall_s=config.stall_s)


def _manifest(onnx: Manifest, report: BuildReport, used: BuildConfig, outcome: Outcome) -> Manifest:
    """The ONNX file's manifest as that of the engine, without golden frames and parity."""
    library = report.probed["library"]
    provenance = dataclasses.replace(made_now(onnx, report.probed).provenance, onnx_sha256=report.onnx_sha256)
    return onnx.replace(
        schema=edgerpn.manifest.SCHEMA,
        name=report.engine.stem,
        kind="engine",
        target=library,
        provenance=provenance,
        parity=None,
        golden=None,
        engine=_engine_spec(report, used, outcome),
    )


def made_now(manifest: Manifest, probed: dict[str, Any]) -> Manifest:
    """A manifest with the time, and with the library that `probe` found among the versions."""
    provenance = dataclasses.replace(
        manifest.provenance,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=tuple(sorted({**dict(manifest.provenance.versions), probed["library"]: probed["version"]}.items())),
    )
    return manifest.replace(provenance=provenance)


def _engine_spec(report: BuildReport, used: BuildConfig, outcome: Outcome) -> EngineSpec:
    machine, built = report.probed["machine"], outcome.events["built"]
    smallest, tuned, largest = built["batch"]
    capabilities = used.compute_capabilities or RTX_DEFAULT_CAPABILITIES
    if report.probed["library"] == "tensorrt":
        capabilities = (machine["compute_capability"],)
    return EngineSpec(
        library=report.probed["library"],
        library_version=report.probed["version"],
        compute_capabilities=capabilities,
        platform=machine["platform"],
        profile=ProfileSpec(min_batch=smallest, opt_batch=tuned, max_batch=largest),
        gpu=machine["gpu"],
        driver=machine["driver"],
        cuda=report.probed["cuda"],
        l4t=machine["l4t"],
        version_compatible=used.version_compatible,
        hardware_compatible=used.hardware_compatible,
        tf32=used.tf32,
        dla_core=used.dla_core,
        optimization_level=used.optimization_level,
        workspace_mib=used.workspace_mib,
        build_s=built["build_s"],
        **layers_of(outcome),
    )


def layers_of(outcome: Outcome) -> dict[str, Any]:
    """The fields of `EngineSpec` that the library's inspector fills."""
    found = outcome.events.get("layers", {})
    return {
        "num_layers": found.get("num_layers"),
        "layers": tuple(LayerSpec(**layer) for layer in found.get("layers", [])),
    }
