"""The command `edgerpn bulk`: a model on millions of pictures, on the machines of a Ray cluster, into Parquet files.

Exit status: 0, done; 1, an error, or no picture could be read; 2, wrong usage; 130 and 143, a signal stopped the run.
The same command continues a run that did not end.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from edgerpn.arguments import (
    HOST_CODE_HELP,
    UNSEALED_HELP,
    add_settings_arguments,
    count_argument,
    load_settings,
    print_settings,
    share_argument,
)
from edgerpn.batch.config import BulkConfig
from edgerpn.files import printable

FLAGS = {"min_score": "min_score", "max_per_image": "max_per_image", "workers": "workers", "threads": "threads"}
"""Flags and the settings that they set."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="ONNX file or engine; or an installed model (general)"
    )
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="folders, quoted globs, lists (.txt), Parquet files of paths or bytes, images, videos; paths or URLs",
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder of the Parquet files, path or URL")
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="a Ray cluster; auto: that of this machine (RAY_ADDRESS, or none)"
    )
    parser.add_argument("--workers", type=count_argument(1), metavar="N", help="maximum number of workers (all CPUs)")
    parser.add_argument("--threads", type=count_argument(1), metavar="N", help="CPUs of a worker (1)")
    parser.add_argument(
        "--min-score", type=share_argument(), metavar="X", help="leave out proposals scored below X (0)"
    )
    parser.add_argument(
        "--max-per-image", metavar="N", type=count_argument(1), help="keep the N best proposals of a picture (all)"
    )
    parser.add_argument("--allow-host-code", action="store_true", help=HOST_CODE_HELP)
    parser.add_argument("--unsealed", action="store_true", help=UNSEALED_HELP)
    add_settings_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs the model and prints a summary; returns the exit status as above."""
    config = load_settings(BulkConfig, arguments, FLAGS)
    if arguments.print_config:
        return print_settings(config)
    from edgerpn.batch.run import bulk

    # Ray prints to the standard output when it loses a worker or a machine.
    with contextlib.redirect_stdout(sys.stderr):
        summary = bulk(
            arguments.model,
            arguments.inputs,
            arguments.output,
            config,
            address=arguments.address,
            allow_host_code=arguments.allow_host_code,
            verify=not arguments.unsealed,
        )
    print(printable(f"{summary.text()}; written: {arguments.output}"))
    return 1 if summary.num_pictures == summary.num_broken else 0
