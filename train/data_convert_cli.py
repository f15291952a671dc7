"""The command `edgerpn data convert`."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgerpn.labels import WRITERS
from edgerpn.train.data import choice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("path", type=Path, metavar="PATH", help="folder of a data set, or its file")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", required=True, help="folder of the new set; absent or empty"
    )
    parser.add_argument("--to", choices=tuple(WRITERS), required=True, help="format of the new set")
    parser.add_argument("--link", action="store_true", help="make hard links to the images instead of copies")
    choice.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Converts; returns the exit status."""
    from edgerpn.train.data.convert import convert

    writer = convert(
        arguments.path,
        arguments.output,
        arguments.to,
        choice=choice.chosen(arguments),
        link=arguments.link,
        log=print,
    )
    print(f"{arguments.output}: {writer.title}, {writer.num_images} images, {writer.num_boxes} boxes")
    return 0
