"""The command `edgerpn export`."""

from __future__ import annotations

import argparse
import functools
import typing
from pathlib import Path

from edgerpn.arguments import add_settings_arguments, load_settings, print_settings, size_argument
from edgerpn.errors import UsageError
from edgerpn.export.export_config import PRECISIONS, ExportConfig, ExportLayout
from edgerpn.manifest import manifest_path
from edgerpn.targets import EXPORT_TARGETS
from edgerpn.train.data import choice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "checkpoint", type=Path, nargs="?", metavar="CHECKPOINT", help="best.pt of a training run, or general"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="MODEL.onnx", help="file to write; its manifest is written beside it"
    )
    parser.add_argument("--target", choices=EXPORT_TARGETS, help="library that will run it (default onnxruntime)")
    parser.add_argument(
        "--size", type=size_argument, metavar="HxW", help="size that the network works at (default: as trained)"
    )
    parser.add_argument(
        "--source-size", type=size_argument, metavar="HxW", help="size of the frames, to have resizing in the graph"
    )
    parser.add_argument(
        "--batch",
        type=_batch,
        metavar="N|dynamic",
        help="frames in a batch (default: dynamic for onnxruntime, else 1)",
    )
    parser.add_argument("--proposals", type=int, metavar="K", help="proposals of a frame (default 100)")
    parser.add_argument(
        "--embeddings", action="store_true", help="add an output with a feature vector for each proposal"
    )
    parser.add_argument(
        "--roi-features",
        type=_cells,
        metavar="CELLS|HxW",
        help="add an output with the feature map of each proposal, pooled to so many cells, such as 7",
    )
    parser.add_argument(
        "--layout", choices=typing.get_args(ExportLayout), help="form of the outputs: ours (default), or for Frigate"
    )
    parser.add_argument("--precision", choices=PRECISIONS, help="precision of the network (default fp32)")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="int8: folder of photographs to calibrate on (default: the training images)",
    )
    parser.add_argument(
        "--max-ar-drop",
        type=_points,
        metavar="POINTS|off",
        help="AR@100 that fp16 or int8 may lose, in hundredths (default 0.5 and 1)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="folder of a data set (COCO, YOLO, VOC), or its file, for parity and recall (default: as trained on)",
    )
    choice.add_arguments(parser)
    parser.add_argument("--images", type=Path, metavar="DIR", help="photographs for parity, without annotations")
    add_settings_arguments(parser)


def _batch(text: str) -> int | str:
    if text == "dynamic":
        return text
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a positive number or dynamic, got {text!r}")


def _cells(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) <= 2 and all(side.isdigit() for side in sides):
        return int(sides[0]), int(sides[-1])
    raise argparse.ArgumentTypeError(
        f"expected a number of cells such as 7, or rows x columns such as 7x7, got {text!r}"
    )


def _points(text: str) -> float | str:
    if text == "off":
        return text
    try:
        points = float(text)
    except ValueError:
        points = -1.0
    if points >= 0:
        return points
    raise argparse.ArgumentTypeError(f"expected a number of points, 0 or more, or off, got {text!r}")


def run(arguments: argparse.Namespace) -> int:
    """Exports; returns the exit status."""
    config = load_settings(ExportConfig, arguments, FLAGS)
    if arguments.print_config:
        return print_settings(config)
    names = (("CHECKPOINT", arguments.checkpoint), ("--output", arguments.output))
    missing = [name for name, value in names if value is None]
    if missing:
        raise UsageError([f"{' and '.join(missing)}: needed, see `edgerpn export --help`"])
    if arguments.output.suffix != ".onnx":
        raise UsageError([f"--output {arguments.output}: expected a file name that ends in .onnx"])
    if arguments.calibration is not None and config.precision != "int8":
        raise UsageError([f"--calibration is for --precision int8, the precision is {config.precision}"])
    if problems := choice.problems_without_data(arguments):
        raise UsageError(problems)
    from edgerpn.export.onnx.export import export_onnx
    from edgerpn.train.data.splits import find_split

    # At once, also where standard output is a file: an export takes minutes.
    log = functools.partial(print, flush=True)
    data = arguments.data
    if data is not None:
        data = find_split(data, "val", choice.chosen(arguments), log)
    manifest = export_onnx(
        arguments.checkpoint,
        arguments.output,
        config,
        data=data,
        images=arguments.images,
        calibration=arguments.calibration,
        log=log,
    )
    recall = manifest.recall
    if recall is not None:
        figures = "  ".join(f"{name} {value:.3f}" for name, value in recall.metrics[:2])
        log(f"recall of the graph on {recall.num_images} images: {figures}")
    log(f"wrote {arguments.output} and {manifest_path(arguments.output)}")
    return 0


FLAGS = {
    "target": "target",
    "size": "network_hw",
    "source_size": "source_hw",
    "batch": "batch",
    "proposals": "num_proposals",
    "embeddings": "embeddings",
    "roi_features": "roi_features",
    "layout": "layout",
    "precision": "precision",
    "max_ar_drop": "max_ar_drop",
}
"""Flags and the settings that they set."""
