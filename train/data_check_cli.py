"""The command `edgerpn data check`: finds what is wrong with a data set, without training."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edgerpn import files
from edgerpn.arguments import size_argument
from edgerpn.errors import UsageError
from edgerpn.files import printable
from edgerpn.train.data import choice

if TYPE_CHECKING:
    from edgerpn.train.check.opinion import Detect
    from edgerpn.train.config import TrainSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("path", type=Path, metavar="PATH", help="folder of a data set, or its file")
    choice.add_arguments(parser)
    parser.add_argument(
        "--size", type=size_argument, metavar="HxW", help="size at which the network will work, such as 384x640"
    )
    parser.add_argument("--preset", metavar="NAME", help="settings of training: edge (default) or paper")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a trained model, whose settings apply; it shows images whose objects are not marked",
    )
    parser.add_argument("--no-images", action="store_true", help="check the annotations only; images need not be there")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="PAGE.html", help="write a page with pictures of the worst"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON; -: to standard output")


def run(arguments: argparse.Namespace) -> int:
    """Checks; returns the exit status, 1 if there are errors."""
    from edgerpn.train.check.checking import check_set
    from edgerpn.train.check.page import check_page

    settings, detect = _settings(arguments)
    report = check_set(
        arguments.path,
        choice.chosen(arguments),
        settings,
        detect=detect,
        has_images=not arguments.no_images,
        outputs=(("--output", arguments.output), ("--json", arguments.json)),
    )
    if arguments.output is not None:
        files.write_text(arguments.output, check_page(report))
    if arguments.json is not None:
        text = json.dumps(report.to_json(), indent=2) + "\n"
        if str(arguments.json) == "-":
            sys.stdout.write(text)
        else:
            files.write_text(arguments.json, text)
    if str(arguments.json) != "-":
        print(report.text())
        written = [printable(str(path)) for path in (arguments.output, arguments.json) if path is not None]
        if written:
            print(f"written: {', '.join(written)}")
    return 1 if report.num_errors else 0


def _settings(arguments: argparse.Namespace) -> tuple[TrainSettings, Detect | None]:
    """Returns the settings that count, and the trained model, if one is given.

    Raises:
        ConfigError: Arguments exclude each other, or the size does not fit the network.
        CheckpointError: The checkpoint cannot be read.
    """
    from edgerpn.train.config import load_settings

    size = [f"data.input_hw={list(arguments.size)}"] if arguments.size else []
    if arguments.checkpoint is None:
        return load_settings(preset=arguments.preset or "edge", overrides=tuple(size)), None
    if arguments.no_images or arguments.preset is not None:
        raise UsageError(["--checkpoint looks at the images and has its own settings: without --no-images, --preset"])
    from edgerpn import settings as settings_io
    from edgerpn.train.check.opinion import NUM_PROPOSALS
    from edgerpn.train.checkpoint import load_model
    from edgerpn.train.evaluation import make_detector
    from edgerpn.train.network.detector import detect

    model, checkpoint = load_model(arguments.checkpoint)
    settings = settings_io.load(type(checkpoint.settings), base=checkpoint.settings, overrides=size)
    detector = make_detector(model, checkpoint, num_proposals=NUM_PROPOSALS, size_hw=arguments.size)
    return settings, partial(detect, detector)
