"""The command `edgerpn train`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgerpn.arguments import names_argument, size_argument
from edgerpn.errors import ConfigError

if TYPE_CHECKING:
    from edgerpn.train.config import TrainSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="folder with train.json, val.json (COCO) and images/, or a training file with the others beside it",
    )
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
    length.add_argument("--epochs", type=int, metavar="N", help="passes over the training images")
    length.add_argument("--minutes", type=float, metavar="M", help="wall-clock time instead of a number of epochs")
    parser.add_argument(
        "--size", type=size_argument, metavar="HxW", help="size that the network works at, such as 384x640"
    )
    parser.add_argument("--preset", metavar="NAME", help="edge (default) or paper")
    parser.add_argument(
        "--holdout-classes",
        type=names_argument,
        metavar="A,B",
        help="train without the boxes of these classes; `edgerpn eval` reports recall on them apart",
    )
    parser.add_argument("--backbone-weights", type=Path, metavar="FILE", help="torchvision checkpoint to start from")
    parser.add_argument("--resume", action="store_true", help="go on from RUN/last.pt, with its settings")
    parser.add_argument("--config", metavar="FILE.toml", help="settings, over the preset's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="one setting, over the file's; may be repeated"
    )
    parser.add_argument("--print-config", action="store_true", help="show the resolved settings and exit")


def run(arguments: argparse.Namespace) -> int:
    """Trains; returns the exit status (130 when interrupted)."""
    from edgerpn import settings

    resolved = _settings(arguments)
    if arguments.print_config:
        sys.stdout.write(settings.to_toml(resolved))
        return 0
    missing = [flag for flag, value in (("--data", arguments.data), ("--output", arguments.output)) if value is None]
    if missing:
        raise ConfigError([f"{' and '.join(missing)}: needed, see `edgerpn train --help`"])
    from edgerpn.train.recall.average_recall import format_table
    from edgerpn.train.run.loop import train
    from edgerpn.train.run.ranks import ranks_from

    result = train(
        resolved,
        data=arguments.data,
        out=arguments.output,
        resume=arguments.resume,
        backbone_weights=arguments.backbone_weights,
        say=print,
    )
    if ranks_from().is_first:
        if result.metrics:
            print(format_table({"best": result.metrics}))
        print(f"best checkpoint: {result.best}")
    return 130 if result.interrupted else 0


def _settings(arguments: argparse.Namespace) -> TrainSettings:
    """The preset with file and flags over it; a resumed run starts from its own settings instead of a preset."""
    from edgerpn import settings
    from edgerpn.train.config import TrainSettings, load_settings
    from edgerpn.train.run.folder import RunFolder

    overrides = _overrides(arguments)
    folder = RunFolder(arguments.output) if arguments.resume and arguments.output is not None else None
    if folder is None or not folder.last.is_file():
        return load_settings(preset=arguments.preset or "edge", file=arguments.config, overrides=overrides)
    if arguments.preset is not None:
        raise ConfigError(["--preset: a resumed run has its settings; change single ones with --set"])
    files = [arguments.config] if arguments.config else []
    return settings.load(TrainSettings, base=folder.read_last().settings, files=files, overrides=overrides)


def _overrides(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The plain flags as settings, before the explicit `--set` ones."""
    flags = []
    if arguments.epochs is not None:
        flags += [f"loop.epochs={arguments.epochs}", "loop.minutes=0"]
    if arguments.minutes is not None:
        flags.append(f"loop.minutes={arguments.minutes}")
    if arguments.size is not None:
        flags.append(f"data.input_hw={list(arguments.size)}")
    if arguments.holdout_classes is not None:
        flags.append(f"data.holdout_classes={json.dumps(arguments.holdout_classes)}")
    return (*flags, *arguments.set)
