"""The command `edgerpn package`."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgerpn import settings
from edgerpn.arguments import flag_overrides, share_argument
from edgerpn.export.packages.package import TARGETS, PackageConfig, package


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="exported ONNX file, or installed model (general)")
    parser.add_argument("--for", dest="target", choices=list(TARGETS), required=True, help="program that will run it")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", required=True, help="new folder for the bundle")
    parser.add_argument(
        "--min-score",
        type=share_argument(above_zero=True),
        metavar="SCORE",
        help="score from which the program shows proposals (default 0.2)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the bundle; returns the exit status."""
    config = settings.load(PackageConfig, overrides=flag_overrides(arguments, {"min_score": "min_score"}))
    folder = package(arguments.model, arguments.target, arguments.output, config, log=print)
    print(f"wrote {folder}; {folder / 'README.md'} has the commands")
    return 0
