"""The command `edgerpn train`."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from edgerpn.arguments import add_settings_arguments, names_argument, print_settings, size_argument
from edgerpn.errors import UsageError
from edgerpn.train.data import choice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="folder of a data set, or its file: COCO, YOLO, PASCAL VOC or another, in the layouts that tools write",
    )
    choice.add_arguments(parser)
    parser.add_argument(
        "-o",
        "--output",
        "--out",
        dest="output",
        type=Path,
        metavar="RUN",
        help="folder of the run: checkpoints, log, loss plot",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, metavar="N", help="passes over the training images (default 100)")
    length.add_argument("--minutes", type=float, metavar="M", help="wall-clock time, instead of a number of epochs")
    parser.add_argument(
        "--size", type=size_argument, metavar="HxW", help="size at which the network works, such as 384x640"
    )
    parser.add_argument("--preset", metavar="NAME", help="edge (default) or paper")
    parser.add_argument(
        "--holdout-classes",
        type=names_argument,
        metavar="A,B",
        help="hide the boxes of these classes from training; `edgerpn eval` then reports recall on them separately",
    )
    parser.add_argument(
        "--classify",
        action="store_true",
        help="also train a second stage, which tells the classes of the objects apart (default: objects only)",
    )
    parser.add_argument(
        "--from",
        dest="start",
        metavar="WEIGHTS",
        help="weights to start from: general (default; those of this package), random, or a checkpoint",
    )
    parser.add_argument(
        "--backbone-weights", type=Path, metavar="FILE", help="torchvision weights to start the backbone from"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from RUN/last.pt, with the settings of that run"
    )
    add_settings_arguments(parser, contents="settings; they override the preset's")


def run(arguments: argparse.Namespace) -> int:
    """Trains; returns the exit status (130 if interrupted)."""
    from edgerpn.train.training import read_saved_settings, resolve_settings

    saved = read_saved_settings(arguments.output) if arguments.resume and arguments.output is not None else None
    resolved = resolve_settings(
        base=saved,
        preset=arguments.preset,
        file=arguments.config,
        minutes=arguments.minutes,
        epochs=arguments.epochs,
        size_hw=arguments.size,
        holdout_classes=arguments.holdout_classes,
        classify=arguments.classify,
        start=arguments.start,
        data_format=arguments.format,
        data_split=arguments.split,
        data_allow=arguments.allow,
        data_classes=arguments.classes,
        data_exif=arguments.exif,
        follow_links=arguments.follow_links,
        overrides=arguments.set,
    )
    if arguments.print_config:
        return print_settings(resolved)
    missing = [flag for flag, value in (("--data", arguments.data), ("--output", arguments.output)) if value is None]
    if missing:
        raise UsageError([f"{' and '.join(missing)}: required, see `edgerpn train --help`"])
    from edgerpn.train.recall.average_recall import format_table
    from edgerpn.train.run.ranks import ranks_from_environment
    from edgerpn.train.training import train

    result = train(
        arguments.data,
        arguments.output,
        settings=resolved,
        backbone_weights=arguments.backbone_weights,
        resume=arguments.resume,
        log=log_line,
    )
    if ranks_from_environment().is_first:
        if result.metrics:
            print(format_table({"best": result.metrics}))
        print(f"best checkpoint: {result.best}")
    return 130 if result.interrupted else 0


def log_line(line: str) -> None:
    """Prints a line at once, also into a file; a full disk or a closed pipe there does not end a training."""
    with contextlib.suppress(OSError):
        print(line, flush=True)
