"""The command `edgerpn data check`: finds what is wrong with a data set, without training."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

from edgerpn.train.data import choice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("path", type=Path, metavar="PATH", help="folder of a data set (COCO, YOLO, VOC), or its file")
    choice.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the problems of both splits; returns the exit status, 1 if training would refuse the set."""
    from edgerpn.train.data.coco import read_split
    from edgerpn.train.data.splits import find_train_and_val

    log = functools.partial(print, file=sys.stderr)
    for split in find_train_and_val(arguments.path, choice.chosen(arguments), log):
        dataset = read_split(split)
        print(f"{split.label}: {len(dataset.records)} images, {sum(len(r.boxes_xyxy) for r in dataset.records)} boxes")
        for problem in dataset.problems:
            print(f"  {problem}")
    return 0
