"""The command `edgerpn eval`: recall and speed of a checkpoint, an ONNX file or an engine, or of a results file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgerpn import files
from edgerpn.arguments import count_argument, names_argument, size_argument
from edgerpn.errors import ConfigError, DataError
from edgerpn.letterbox import letterbox
from edgerpn.manifest import manifest_path

if TYPE_CHECKING:
    from edgerpn.train.evaluation import Detect, Evaluation


def evaluate_model(
    model: Path,
    annotations: Path,
    images: Path,
    *,
    num_proposals: int = 1000,
    network_hw: tuple[int, int] | None = None,
    limit: int | None = None,
    holdout_classes: tuple[str, ...] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Measures a model.

    Args:
        model: Checkpoint (.pt), ONNX file or engine.
        annotations: COCO annotations.
        images: Folder of the images.
        num_proposals: K of a checkpoint; exported models have their own.
        network_hw: Height and width that a checkpoint's network works at, pixels; None: as trained.
        limit: Measure the first so many images only.
        holdout_classes: Classes whose recall is measured apart; None: those that a checkpoint was trained without.
        say: Called with one line of text for each kind of problem in the data.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        EngineLoadError: The exported model cannot be loaded.
        ManifestError: The exported model's manifest is missing or does not fit.
        DataError: The annotations or images cannot be used.
    """
    from edgerpn.train.data.splits import Split
    from edgerpn.train.evaluation import evaluate, measure

    if model.suffix == ".pt":
        return evaluate(
            model,
            annotations,
            images=images,
            num_proposals=num_proposals,
            size_hw=network_hw,
            holdout_classes=holdout_classes,
            limit=limit,
            log=say,
        )
    detect, capacity = _open_artifact(model)
    return measure(
        detect,
        Split(annotations, images),
        name=model.name,
        num_proposals=capacity,
        holdout_classes=holdout_classes or (),
        limit=limit,
        log=say,
    )


def _open_artifact(file: Path) -> tuple[Detect, int]:
    import cv2

    from edgerpn.runtime import load

    model = load(file)
    source_hw = model.manifest.input.source_hw

    def run(frame: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        if source_hw is None:
            proposals = model(frame)
            return proposals.boxes, proposals.scores
        # A model for one camera size eats photographs of other sizes laid into that size.
        geometry = letterbox((frame.shape[0], frame.shape[1]), source_hw)
        proposals = model(geometry.apply(frame, cv2.resize))
        return geometry.to_frame(proposals.boxes), proposals.scores

    return run, model.manifest.proposals.num_proposals


def evaluate_results(results: Path, annotations: Path) -> dict[str, float]:
    """Recall of a COCO results file (a JSON list of image_id, bbox, score), whoever made it.

    Raises:
        DataError: A file cannot be read, or is not in COCO's format.
    """
    from edgerpn.train.recall.average_recall import average_recall

    rows = _read_json(results)
    if not isinstance(rows, list):
        raise DataError(f"{results}: expected a JSON list of results, got {type(rows).__name__}")
    for number, row in enumerate(rows):
        if not (_has_box(row) and isinstance(row.get("image_id"), (int, str)) and _is_number(row.get("score"))):
            raise DataError(
                f"{results}: result {number}: expected image_id, bbox [x, y, width, height] and score, got {row}"
            )
    truth = _read_json(annotations)
    if not isinstance(truth, dict) or not all(isinstance(truth.get(key), list) for key in ("images", "annotations")):
        raise DataError(f"{annotations}: expected COCO annotations with lists 'images' and 'annotations'")
    for number, image in enumerate(truth["images"]):
        if not (isinstance(image, dict) and "id" in image):
            raise DataError(f"{annotations}: image {number}: expected an object with id, got {image}")
    for number, row in enumerate(truth["annotations"]):
        if not (_has_box(row) and "image_id" in row):
            raise DataError(f"{annotations}: annotation {number}: expected image_id and bbox, got {row}")
    return average_recall(truth, rows)


def _has_box(row: Any) -> bool:
    box = row.get("bbox") if isinstance(row, dict) else None
    return isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("model", type=Path, nargs="?", metavar="MODEL", help="checkpoint, ONNX file or engine")
    parser.add_argument("--data", type=Path, required=True, metavar="ANN.json", help="COCO annotations")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of the images (default: images/ beside ANN.json)"
    )
    parser.add_argument(
        "--results", type=Path, metavar="RESULTS.json", help="COCO results to measure instead of a model"
    )
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="write the figures to this file")
    parser.add_argument(
        "--proposals", type=count_argument(1), metavar="K", help="proposals of a checkpoint (default 1000)"
    )
    parser.add_argument(
        "--size", type=size_argument, metavar="HxW", help="size at which a checkpoint works (default: as trained)"
    )
    parser.add_argument(
        "--holdout-classes",
        type=names_argument,
        metavar="A,B",
        help="measure recall on these classes apart (default: those that a checkpoint was trained without)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluates; returns the exit status."""
    from edgerpn.train.recall.average_recall import BUDGETS, format_table

    if (arguments.model is None) == (arguments.results is None):
        raise ConfigError(["eval: name either a MODEL or --results RESULTS.json"])
    _check_report(arguments)
    if arguments.results is not None:
        if arguments.holdout_classes:
            raise ConfigError(["eval: --holdout-classes: of a model only, not of --results"])
        metrics = evaluate_results(arguments.results, arguments.data)
        print(format_table({arguments.results.name: metrics}))
        _write_report(arguments.report, {"results": str(arguments.results), "metrics": metrics})
        return 0
    if arguments.model.suffix != ".pt" and (arguments.size or arguments.proposals):
        raise ConfigError(["eval: --size and --proposals are for checkpoints; an exported model has its own"])
    images = arguments.images or arguments.data.parent / "images"
    evaluation = evaluate_model(
        arguments.model,
        arguments.data,
        images,
        num_proposals=arguments.proposals or 1000,
        network_hw=arguments.size,
        holdout_classes=arguments.holdout_classes,
        say=_warn,
    )
    if evaluation.open_world:
        print(f"unseen: {', '.join(evaluation.holdout_classes)}")
    print(format_table(evaluation.open_world or {arguments.model.name: evaluation.metrics}))
    beyond = [f"AR@{budget}" for budget in BUDGETS if budget > evaluation.num_proposals]
    if beyond:
        print(f"({', '.join(beyond)}: this model gives {evaluation.num_proposals} proposals at most)", file=sys.stderr)
    ms = evaluation.latency_ms
    print(
        f"{evaluation.num_images} images, {evaluation.images_per_s:.1f} images/s; latency p50 {ms['p50']:.2f} ms, "
        f"p95 {ms['p95']:.2f} ms, p99 {ms['p99']:.2f} ms"
    )
    _write_report(arguments.report, {"model": os.fspath(arguments.model), **dataclasses.asdict(evaluation)})
    return 0


def _warn(line: str) -> None:
    print(line, file=sys.stderr)


def _check_report(arguments: argparse.Namespace) -> None:
    """Refuses a report that would replace an input, or cannot be written, before the work is done.

    Raises:
        ConfigError: It would.
    """
    report = arguments.report
    if report is None:
        return
    inputs = [arguments.data, arguments.results, arguments.model]
    inputs += [manifest_path(arguments.model)] if arguments.model else []
    if report.resolve() in {path.resolve() for path in inputs if path is not None}:
        raise ConfigError([f"--report {report}: this is an input of the evaluation, and would be overwritten"])
    if report.is_dir():
        raise ConfigError([f"--report {report}: this is a folder, expected the name of a file"])
    report.parent.mkdir(parents=True, exist_ok=True)


def _write_report(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        files.write_text(path, json.dumps(content, indent=2) + "\n")
