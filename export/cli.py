"""The command `edgerpn export`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edgerpn import settings
from edgerpn.arguments import size_argument
from edgerpn.errors import ConfigError, DataError, ExportError
from edgerpn.export.export_config import NMS, PRECISIONS, ExportConfig
from edgerpn.export.photographs import parity_images
from edgerpn.manifest import manifest_path
from edgerpn.targets import EXPORT_TARGETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("checkpoint", type=Path, nargs="?", metavar="CHECKPOINT", help="best.pt of a training run")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="model.onnx", help="file to write; its manifest goes beside"
    )
    parser.add_argument("--target", choices=EXPORT_TARGETS, help="what will run it (default onnxruntime)")
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
    parser.add_argument("--pre-nms", type=int, metavar="N", help="boxes of each level before NMS (default 1000)")
    parser.add_argument("--iou", type=float, metavar="X", help="NMS threshold (default: as trained)")
    parser.add_argument(
        "--soft-iou", type=float, metavar="X", help="overlap that costs score, 1: none does (default: as trained)"
    )
    parser.add_argument("--score", type=float, metavar="X", help="drop proposals scored below (default: as trained)")
    parser.add_argument("--nms", choices=NMS, help="form of the NMS (default: the target's choice)")
    parser.add_argument("--precision", choices=PRECISIONS, help="of the network (default fp32)")
    parser.add_argument(
        "--calibration", type=Path, metavar="DIR", help="int8: photographs to calibrate on (default: trained on)"
    )
    parser.add_argument(
        "--max-ar-drop",
        type=_points,
        metavar="POINTS|off",
        help="AR@100 that fp16 or int8 may lose, in hundredths (default 0.5 and 1)",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="val.json and images/ for parity and recall (default: trained on)"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="photographs for parity, without annotations")
    parser.add_argument("--config", metavar="FILE.toml", help="settings")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="one setting, over the file's")
    parser.add_argument("--print-config", action="store_true", help="show the resolved settings and exit")


def _batch(text: str) -> int | str:
    if text == "dynamic":
        return text
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a positive number or dynamic, got {text!r}")


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
    config = _config(arguments)
    if arguments.print_config:
        sys.stdout.write(settings.to_toml(config))
        return 0
    names = (("CHECKPOINT", arguments.checkpoint), ("--output", arguments.output))
    missing = [name for name, value in names if value is None]
    if missing:
        raise ConfigError([f"{' and '.join(missing)}: needed, see `edgerpn export --help`"])
    if arguments.calibration is not None and config.precision != "int8":
        raise ConfigError([f"--calibration is for --precision int8, the precision asked for is {config.precision}"])
    from edgerpn.export.onnx.export import NUM_CHAIN_IMAGES, export_onnx
    from edgerpn.export.precision.meter import RecallMeter
    from edgerpn.train.checkpoint import load_checkpoint

    trained_on = load_checkpoint(arguments.checkpoint).data_folder
    folder = _data_folder(arguments, trained_on)
    result = export_onnx(
        arguments.checkpoint,
        arguments.output,
        config,
        images=parity_images(folder, arguments.images, most=NUM_CHAIN_IMAGES),
        calibration=_calibration(arguments, trained_on) if config.precision == "int8" else (),
        meter=RecallMeter(folder / "val.json", folder / "images") if folder else None,
        say=_say,
    )
    recall = result.manifest.recall
    if recall is not None:
        figures = "  ".join(f"{name} {value:.3f}" for name, value in recall.metrics[:2])
        _say(f"recall of the graph on {recall.num_images} images: {figures}")
    _say(f"wrote {arguments.output} and {manifest_path(arguments.output)}")
    return 0


def _say(text: str) -> None:
    """Writes a line at once, also where standard output is a file: an export takes minutes."""
    print(text, flush=True)


FLAGS = {
    "target": "target",
    "size": "network_hw",
    "source_size": "source_hw",
    "batch": "batch",
    "proposals": "num_proposals",
    "pre_nms": "pre_nms",
    "iou": "nms_iou",
    "soft_iou": "soft_nms_iou",
    "score": "score_threshold",
    "nms": "nms",
    "precision": "precision",
    "max_ar_drop": "max_ar_drop",
}
"""Plain flags and the settings that they stand for."""


def _config(arguments: argparse.Namespace) -> ExportConfig:
    """Defaults < file < flags < `--set`."""
    given = {setting: getattr(arguments, flag) for flag, setting in FLAGS.items()}
    flags = [f"{setting}={_toml(value)}" for setting, value in given.items() if value is not None]
    files = [arguments.config] if arguments.config else []
    return settings.load(ExportConfig, files=files, overrides=[*flags, *arguments.set])


def _toml(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _data_folder(arguments: argparse.Namespace, trained_on: str) -> Path | None:
    """The folder with val.json: the named one, or the training folder if it is still there."""
    if arguments.data is not None:
        if not (arguments.data / "val.json").is_file():
            raise DataError(f"{arguments.data}: expected a folder with val.json and images/")
        return arguments.data
    folder = Path(trained_on)
    return folder if trained_on and arguments.images is None and (folder / "val.json").is_file() else None


def _calibration(arguments: argparse.Namespace, trained_on: str) -> list[Path]:
    """int8: photographs of the named folder, or those that the model was trained on.

    Raises:
        ExportError: Neither is there.
        DataError: There are no photographs in it.
    """
    from edgerpn.export.precision.calibration import calibration_images

    folder = arguments.calibration or (Path(trained_on) if trained_on else None)
    if folder is None or not (arguments.calibration or (folder / "train.json").is_file()):
        raise ExportError(
            "--precision int8 needs photographs to calibrate on, and the training folder is not here; name a folder of "
            "them with --calibration DIR"
        )
    return calibration_images(folder, say=_say)
