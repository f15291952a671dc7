"""The command `edgerpn export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgerpn.arguments import size_argument
from edgerpn.errors import ConfigError, DataError, ExportError
from edgerpn.export.config import TARGETS, ExportConfig
from edgerpn.manifest import RecallSpec

NUM_PARITY_IMAGES = 16
"""Images on which graph and network are compared."""
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="best.pt of a training run")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="model.onnx", help="file to write")
    parser.add_argument(
        "--target", choices=TARGETS, default="onnxruntime", help="what will run it (default onnxruntime)"
    )
    parser.add_argument(
        "--size", type=size_argument, metavar="HxW", help="size that the network works at (default: as trained)"
    )
    parser.add_argument(
        "--source-size", type=size_argument, metavar="HxW", help="size of the frames, to have resizing in the graph"
    )
    parser.add_argument(
        "--batch",
        type=_batch,
        default="auto",
        metavar="N|dynamic",
        help="frames in a batch (default: dynamic for onnxruntime, else 1)",
    )
    parser.add_argument("--proposals", type=int, default=100, metavar="K", help="proposals of a frame (default 100)")
    parser.add_argument(
        "--pre-nms", type=int, default=1000, metavar="N", help="boxes of each level before NMS (default 1000)"
    )
    parser.add_argument("--iou", type=float, default=0.7, metavar="X", help="NMS threshold (default 0.7)")
    parser.add_argument("--score", type=float, default=0.0, metavar="X", help="drop proposals scored below (default 0)")
    parser.add_argument(
        "--nms", choices=("standard", "portable"), help="form of the NMS (default: the target's choice)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with val.json and images/ for parity and recall (default: the training folder)",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="photographs for parity, when there are no annotations"
    )


def _batch(text: str) -> int | str:
    if text in ("auto", "dynamic"):
        return text
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a positive number or dynamic, got {text!r}")


def run(arguments: argparse.Namespace) -> int:
    """Exports; returns the exit status."""
    config = _config(arguments)
    from edgerpn.export.to_onnx import export_onnx
    from edgerpn.train.checkpoint import load_checkpoint

    folder = _data_folder(arguments, load_checkpoint(arguments.checkpoint).data_folder)
    images = parity_images(folder, arguments.images)
    result = export_onnx(
        arguments.checkpoint,
        arguments.output,
        config,
        images=images,
        measure_recall=lambda onnx_file: measure_recall(onnx_file, folder),
        say=print,
    )
    recall = result.manifest.recall
    if recall is not None:
        figures = "  ".join(f"{name} {value:.3f}" for name, value in recall.metrics[:2])
        print(f"recall of the graph on {recall.num_images} images: {figures}")
    print(f"wrote {arguments.output} and {arguments.output.with_suffix('.json')}")
    return 0


def _config(arguments: argparse.Namespace) -> ExportConfig:
    batch = arguments.batch
    if batch == "auto":
        batch = "dynamic" if arguments.target == "onnxruntime" else 1
    try:
        return ExportConfig(
            target=arguments.target,
            network_hw=arguments.size,
            source_hw=arguments.source_size,
            batch=None if batch == "dynamic" else batch,
            num_proposals=arguments.proposals,
            pre_nms=arguments.pre_nms,
            nms_iou=arguments.iou,
            score_threshold=arguments.score,
            nms=arguments.nms,
        )
    except ValueError as error:
        raise ConfigError([str(error)], source="export") from error


def _data_folder(arguments: argparse.Namespace, trained_on: str) -> Path | None:
    """The folder with val.json: the named one, or the training folder if it is still there."""
    if arguments.data is not None:
        if not (arguments.data / "val.json").is_file():
            raise DataError(f"{arguments.data}: expected a folder with val.json and images/")
        return arguments.data
    folder = Path(trained_on)
    return folder if trained_on and arguments.images is None and (folder / "val.json").is_file() else None


def parity_images(folder: Path | None, images: Path | None) -> list[Path]:
    """Photographs to compare on, spread over the validation images of `folder`, or over the folder `images`.

    Raises:
        ExportError: There are none.
        DataError: The annotations cannot be used.
    """
    if folder is not None:
        from edgerpn.train.coco import read_coco

        found = [record.file for record in read_coco(folder / "val.json", folder / "images", verify="header").records]
    elif images is not None:
        found = sorted(p for p in images.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) if images.is_dir() else []
    else:
        raise ExportError(
            "the graph must be compared with PyTorch on real images, and the training folder is not here; name one "
            "with --data DIR (val.json and images/) or a folder of photographs with --images DIR"
        )
    if not found:
        raise ExportError(f"{images or folder}: no images to compare the graph with PyTorch on")
    return found[:: max(1, len(found) // NUM_PARITY_IMAGES)][:NUM_PARITY_IMAGES]


def measure_recall(onnx_file: Path, folder: Path | None) -> RecallSpec | None:
    """Recall of an exported file on the validation images of `folder`, to be recorded in its manifest."""
    if folder is None:
        return None
    from edgerpn.export.evaluate import evaluate_model

    evaluation = evaluate_model(onnx_file, folder / "val.json", folder / "images", limit=500)
    shown = [name for name in evaluation.metrics if name != "AR@1000" or evaluation.num_proposals >= 1000]
    return RecallSpec(
        data_sha256=evaluation.data_sha256,
        num_images=evaluation.num_images,
        metrics=tuple((name, round(evaluation.metrics[name], 5)) for name in shown),
    )
