"""The command `edgerpn why`."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgerpn import manifest as manifests
from edgerpn.errors import EngineLoadError, ManifestError

if TYPE_CHECKING:
    from edgerpn.runtime.backends.tensorrt.compatibility import Check

_WIDTH = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `edgerpn why` to `parser`."""
    parser.add_argument("engine", metavar="ENGINE", type=Path, help="engine file; its manifest lies beside it")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints whether an engine can run here; exit status 0 when it can, 1 when it cannot.

    Raises:
        ManifestError: The file or its manifest is missing or malformed.
        EngineLoadError: It is not an engine.
    """
    checks = explain(arguments.engine)
    if arguments.json:
        text = json.dumps([_as_dict(check) for check in checks], indent=2)
    else:
        text = f"{table(checks)}\n{conclusion(arguments.engine, checks)}"
    sys.stdout.write(text + "\n")
    return 1 if any(check.verdict == "no" for check in checks) else 0


def explain(path: Path) -> list[Check]:
    """Compares an engine with this machine, as far as its library and the driver let it.

    Raises:
        ManifestError: The file or its manifest is missing or malformed.
        EngineLoadError: It is not an engine.
    """
    from edgerpn.runtime.backends.tensorrt import compatibility

    if path.suffix.lower() == ".onnx":
        raise EngineLoadError(f"{path}: expected an engine; an ONNX model runs wherever ONNX Runtime does")
    sidecar = manifests.manifest_path(path)
    for file, what in ((path, "the engine"), (sidecar, f"the manifest of {path.name}")):
        if not file.is_file():
            raise ManifestError(f"{file}: {what} is missing")
    try:
        text = sidecar.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{sidecar}: cannot be read: {error}") from error
    # Not manifests.read: a wrong hash is a row of the table here.
    manifest = manifests.parse(text, source=str(sidecar))
    return compatibility.compare(path, manifest, compatibility.look_here(compatibility.engine_spec(path, manifest)))


def table(checks: Sequence[Check]) -> str:
    """The checks as text: key and verdict, then what is expected and found, and what to do."""
    lines = []
    for check in checks:
        lines.append(f"{check.verdict:<8} {check.key}")
        rows = [("expected", check.expected), ("found", check.found), ("to do", check.advice)]
        for label, value in rows:
            if value:
                indent = f"{'':9}{label:<9}"
                lines += textwrap.wrap(value, _WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent))
    return "\n".join(lines)


def conclusion(path: Path, checks: Sequence[Check]) -> str:
    """One line: whether it can run here, and what could not be found out."""
    failed = [check.key for check in checks if check.verdict == "no"]
    unknown = [check.key for check in checks if check.verdict == "unknown"]
    text = f"{path}: " + (f"cannot run here because of: {', '.join(failed)}" if failed else "can run here")
    return text + (f"; not found out: {', '.join(unknown)}" if unknown else "")


def _as_dict(check: Check) -> dict[str, str]:
    return {
        "key": check.key,
        "expected": check.expected,
        "found": check.found,
        "verdict": check.verdict,
        "advice": check.advice,
    }
