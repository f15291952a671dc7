"""The command `edgerpn predict`: a model on images and videos, into results, data sets, crops, pictures and a page.

Exit status: 0, done; 1, an error, or no image could be read; 2, wrong usage; 128 + N, signal N stopped the run, which
continues when it is called again.
"""

from __future__ import annotations

import argparse
import functools
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
from edgerpn.errors import ConfigError, UsageError
from edgerpn.export.prediction.config import PredictConfig
from edgerpn.files import printable
from edgerpn.labels import WRITERS
from edgerpn.train.data import choice

FLAGS = {"min_score": "min_score", "max_per_image": "max_per_image", "nms": "nms_iou"}
"""Flags and the settings that they set."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="checkpoint, ONNX file or engine; or an installed model (general)"
    )
    images = parser.add_argument(
        "images",
        metavar="IMAGES",
        nargs="+",
        default=[],
        help="images, videos, folders or quoted globs of images, lists of files (.txt); default: the images of --data",
    )
    # Not "*", which argparse takes for empty when options stand between the model and the images.
    images.required = False
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="folder of all outputs")
    parser.add_argument(
        "--data", type=Path, metavar="PATH", help="data set (COCO, YOLO, VOC) whose image ids the results use"
    )
    choice.add_arguments(parser)
    parser.add_argument(
        "--to",
        choices=tuple(WRITERS),
        action="append",
        default=[],
        help="also write a data set of this format; may be repeated",
    )
    parser.add_argument("--crops", action="store_true", help="cut out the best boxes of each image")
    parser.add_argument("--pictures", action="store_true", help="draw the best boxes of each image")
    parser.add_argument(
        "--min-score", type=share_argument(), metavar="X", help="leave out proposals scored below X (0)"
    )
    parser.add_argument(
        "--max-per-image", metavar="N", type=count_argument(1), help="keep the N best proposals of an image (all)"
    )
    parser.add_argument(
        "--nms",
        metavar="IOU",
        type=share_argument(above_zero=True),
        help="leave out near copies: proposals whose IoU with a better one, of its class where the model has classes, "
        "is larger (1: none)",
    )
    parser.add_argument("--allow-host-code", action="store_true", help=HOST_CODE_HELP)
    parser.add_argument("--unsealed", action="store_true", help=UNSEALED_HELP)
    add_settings_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Predicts and prints a summary; returns the exit status as above."""
    config = load_settings(PredictConfig, arguments, FLAGS)
    if arguments.print_config:
        return print_settings(config)
    _check_arguments(arguments)
    from edgerpn.export.prediction.predict import predict

    log = functools.partial(print, file=sys.stderr)
    data = arguments.data
    if data is not None:
        from edgerpn.train.data.splits import find_split

        data = find_split(data, "val", choice.chosen(arguments), log)
    summary = predict(
        arguments.model,
        arguments.images,
        arguments.output,
        config,
        data=data,
        to=arguments.to,
        crops=arguments.crops,
        pictures=arguments.pictures,
        allow_host_code=arguments.allow_host_code,
        verify=not arguments.unsealed,
        log=log,
    )
    print(printable(f"{summary.text()}; written: {arguments.output}"))
    if summary.stop_signal is not None:
        return 128 + summary.stop_signal
    return 1 if summary.num_images == len(summary.problems) else 0


def _check_arguments(arguments: argparse.Namespace) -> None:
    """Refuses a command line without its parts, before the work.

    Raises:
        UsageError: Lists every problem.
        ConfigError: The output is a file.
    """
    problems = []
    if arguments.output is None:
        problems.append("--output DIR: needed, the folder of all outputs")
    if not arguments.images and arguments.data is None:
        problems.append("IMAGES: name images, videos, folders or lists of files, or a data set with --data")
    problems += choice.problems_without_data(arguments)
    if problems:
        raise UsageError(problems)
    if arguments.output.is_file():
        raise ConfigError([f"--output {arguments.output}: this is a file, expected a folder"])
