"""The command `edgerpn eval`: measures recall, precision and speed of a model, or a results file."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

from edgerpn import files
from edgerpn.arguments import HOST_CODE_HELP, count_argument, names_argument, output_problems, size_argument
from edgerpn.errors import ConfigError, UsageError
from edgerpn.export.model_names import find_any_model
from edgerpn.manifest import manifest_path
from edgerpn.train.data import choice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "model",
        type=Path,
        nargs="?",
        metavar="MODEL",
        help="checkpoint, ONNX file or engine; or an installed model (general)",
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PATH", help="folder of a data set (COCO, YOLO, VOC), or its file"
    )
    choice.add_arguments(parser)
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of the images (default: as the layout of the data set says)"
    )
    parser.add_argument(
        "--results", type=Path, metavar="RESULTS.json", help="COCO results to measure instead of a model"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="REPORT.json", help="write the figures to this file")
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
        help="measure recall on these classes separately (default: those that a checkpoint was trained without)",
    )
    parser.add_argument("--allow-host-code", action="store_true", help=HOST_CODE_HELP)


def run(arguments: argparse.Namespace) -> int:
    """Evaluates; returns the exit status."""
    from edgerpn.export.evaluate import evaluate_model, evaluate_results
    from edgerpn.train.data.splits import find_split
    from edgerpn.train.recall.average_recall import format_rows, format_table

    _check_arguments(arguments)
    log = functools.partial(print, file=sys.stderr)
    split = find_split(arguments.data, "val", choice.chosen(arguments), log)
    _check_output(arguments, split.annotations)
    if arguments.results is not None:
        found = evaluate_results(arguments.results, split, log=log)
        print(format_table({arguments.results.name: found.metrics}))
        if found.classes:
            print(format_rows(found.classes))
        _write_report(arguments.output, {"results": str(arguments.results), **dataclasses.asdict(found)})
        return 0
    evaluation = evaluate_model(
        arguments.model,
        split,
        images=arguments.images,
        num_proposals=arguments.proposals,
        size_hw=arguments.size,
        holdout_classes=arguments.holdout_classes,
        allow_host_code=arguments.allow_host_code,
        log=log,
    )
    if evaluation.open_world:
        print(f"unseen: {', '.join(evaluation.holdout_classes)}")
    print(format_table(evaluation.open_world or {arguments.model.name: evaluation.metrics}))
    if evaluation.classes:
        print(format_rows(evaluation.classes))
    if evaluation.budgets_beyond:
        names = ", ".join(evaluation.budgets_beyond)
        print(f"({names}: this model gives {evaluation.num_proposals} proposals at most)", file=sys.stderr)
    print(evaluation.speed())
    _write_report(arguments.output, {"model": os.fspath(arguments.model), **dataclasses.asdict(evaluation)})
    return 0


def _check_arguments(arguments: argparse.Namespace) -> None:
    """Refuses arguments that exclude each other.

    Raises:
        UsageError: Names the arguments.
    """
    if (arguments.model is None) == (arguments.results is None):
        raise UsageError(["eval: name either a MODEL or --results RESULTS.json"])
    if arguments.results is not None and arguments.holdout_classes:
        raise UsageError(["eval: --holdout-classes is for a model, not for --results"])


def _check_output(arguments: argparse.Namespace, annotations: Path) -> None:
    """Refuses a report that would replace an input or cannot be written, before the work.

    Raises:
        ConfigError: Names the report.
    """
    inputs = [annotations, arguments.results]
    if arguments.model is not None:
        model = find_any_model(arguments.model)
        inputs += [model, manifest_path(model)]
    problems = output_problems(arguments.output, inputs)
    if problems:
        raise ConfigError(problems)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)


def _write_report(path: Path | None, content: dict[str, Any]) -> None:
    if path is not None:
        files.write_text(path, json.dumps(content, indent=2) + "\n")
