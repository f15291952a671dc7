"""The command `edgerpn build`."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from edgerpn.arguments import add_settings_arguments, load_settings, print_settings
from edgerpn.errors import ParityError, UsageError
from edgerpn.export.engine.options import BACKENDS, BuildConfig
from edgerpn.export.engine.output import SUFFIXES
from edgerpn.export.engine.trial import Compare
from edgerpn.manifest import Manifest, ParitySpec, manifest_path

_log = functools.partial(print, flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, nargs="?", metavar="model.onnx", help="file of `edgerpn export`")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE.engine", help="engine to write; manifest and report go beside"
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, help="library (default auto: tensorrt with a GPU, else tensorrt-rtx)"
    )
    parser.add_argument(
        "--compute-capability",
        action="append",
        metavar="X.Y",
        help="tensorrt-rtx: GPU to build for, such as 8.6; repeat it for more (default: the library's choice)",
    )
    parser.add_argument("--version-compatible", action="store_true", help="tensorrt: newer versions run it too")
    parser.add_argument("--hardware-compatible", action="store_true", help="tensorrt: all GPUs since Ampere run it")
    parser.add_argument("--profile", action="store_true", help="measure the time of each layer; needs a GPU")
    parser.add_argument("--images", type=Path, metavar="DIR", help="photographs to compare engine and ONNX file on")
    add_settings_arguments(parser)


FLAGS = {
    "backend": "backend",
    "compute_capability": "compute_capabilities",
    "version_compatible": "version_compatible",
    "hardware_compatible": "hardware_compatible",
    "profile": "profile",
}
"""Flags and their settings."""


def run(arguments: argparse.Namespace) -> int:
    """Builds; returns the exit status."""
    config = load_settings(BuildConfig, arguments, FLAGS)
    if arguments.print_config:
        return print_settings(config)
    names = (("model.onnx", arguments.model), ("--output", arguments.output))
    missing = [name for name, value in names if value is None]
    if missing:
        raise UsageError([f"{' and '.join(missing)}: needed, see `edgerpn build --help`"])
    if arguments.output.suffix.lower() not in SUFFIXES:
        raise UsageError([f"--output {arguments.output}: expected a file name that ends in {' or '.join(SUFFIXES)}"])
    compare = _comparer(arguments.images)
    from edgerpn.export.engine.build import build_engine

    result = build_engine(arguments.model, arguments.output, config, compare=compare, log=_log)
    _log(_summary(result.manifest, result.num_bytes))
    report = f" and {result.report}" if result.report else ""
    _log(f"wrote {arguments.output}{',' if report else ' and'} {manifest_path(arguments.output)}{report}")
    return 0


def _comparer(folder: Path | None) -> Compare | None:
    """Returns a function that compares an engine with its ONNX file on the photographs in `folder`.

    It fails now if it cannot work, not after the build.

    Raises:
        ExportError: There are no photographs.
        ModuleNotFoundError: The comparison needs a package that is not installed.
    """
    if folder is None:
        return None
    from edgerpn.export.compare.compare import compare_models
    from edgerpn.export.photographs import parity_images

    photographs = parity_images(None, folder, log=_log)

    def compare(engine: Path, onnx_file: Path) -> ParitySpec:
        comparison = compare_models(engine, onnx_file, photographs, allow_host_code=True, log=_log)
        if comparison.culprit is not None:
            raise ParityError(f"the engine was not shown to agree with {onnx_file}: {comparison.culprit}")
        return comparison.to_parity_spec("onnx")

    return compare


def _summary(manifest: Manifest, num_bytes: int) -> str:
    """Describes an engine in one line."""
    engine = manifest.engine
    assert engine is not None
    profile = engine.profile
    batches = f"batch {profile.min_batch}"
    if profile.max_batch > profile.min_batch:
        batches = f"batches {profile.min_batch} to {profile.max_batch}, tuned for {profile.opt_batch}"
    return (
        f"{engine.library} {engine.library_version}, {manifest.precision}, {batches}, for compute capability "
        f"{', '.join(engine.compute_capabilities)}: {num_bytes / 1e6:.1f} MB in {engine.build_s:.1f} s"
    )
