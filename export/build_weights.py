"""Weights into a weight-stripped engine: the parent's side of `edgerpn build --refit`; see also `build_refit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import edgerpn.manifest
from edgerpn import files
from edgerpn.errors import BuildError
from edgerpn.export.build import copy_golden, probe
from edgerpn.export.build_child import run_worker
from edgerpn.export.build_config import BuildConfig
from edgerpn.export.build_display import Display
from edgerpn.export.build_libraries import Machine
from edgerpn.export.build_preflight import check_paths, check_room
from edgerpn.export.build_report import explain
from edgerpn.export.build_trial import Compare, try_engine
from edgerpn.manifest import Manifest


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
    spec = manifest.engine
    if spec is None or not spec.weight_stripped:
        raise BuildError(
            f"{stripped}: expected an engine that was built with --weight-stripped; this one has its weights"
        )
    if manifest.provenance.onnx_sha256 != onnx.provenance.artifact_sha256:
        raise BuildError(
            f"{stripped}: it was not built from {onnx_file}, but from another ONNX file (the hashes differ)"
        )
    probed = probe(spec.library)
    machine = Machine(**probed["machine"])
    if machine.gpu is None:
        raise BuildError(f"{stripped}: weights can be put in only where the engine can be loaded: there is no GPU here")
    check_room(onnx_file, output, machine, say)
    with files.replacing(output) as temporary:
        request = {
            "command": "refit",
            "library": spec.library,
            "stripped": str(stripped.resolve()),
            "onnx": str(onnx_file.resolve()),
            "plan": str(temporary.resolve()),
        }
        with Display(f"refitting {output.name}") as display:
            outcome = run_worker(request, on_event=display.event, tick=display.tick)
        if "built" not in outcome.events:
            raise BuildError(f"{stripped}: {explain(outcome, BuildConfig(), has_gpu=True)}")
        made = manifest.replace(
            name=output.stem, golden=None, parity=None, engine=dataclasses.replace(spec, weight_stripped=False)
        )
        made, tried = try_engine(temporary, made, onnx_file, onnx, machine, compare=compare)
        say(tried)
        made = made.replace(golden=copy_golden(onnx_file, onnx, output, say))
    edgerpn.manifest.write(made, output)
    return edgerpn.manifest.read(output)
