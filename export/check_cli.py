"""The command `edgerpn check`: a graph against the limits of a target, or two models against each other."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerpn import files
from edgerpn.arguments import HOST_CODE_HELP, count_argument, output_problems
from edgerpn.errors import ConfigError, UsageError
from edgerpn.export.model_names import find_any_model
from edgerpn.export.photographs import exif_rule, list_photographs, spread
from edgerpn.manifest import manifest_path
from edgerpn.targets import TARGETS
from edgerpn.train.data import choice

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from edgerpn.export.compare.comparison import Comparison
    from edgerpn.export.compare.reseal import ChangedGraph
    from edgerpn.train.data.coco import Dataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "model",
        type=Path,
        metavar="A",
        help="ONNX file or installed model (general); with --against also a checkpoint or an engine",
    )
    parser.add_argument("--target", choices=list(TARGETS), help="check the ONNX file against the limits of this target")
    parser.add_argument(
        "--against", type=Path, metavar="B", help="compare A with this checkpoint, ONNX file or engine, on --images"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="photographs to compare on")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="folder of a data set (COCO, YOLO, VOC), or its file: compare on its validation images, with recall",
    )
    choice.add_arguments(parser)
    parser.add_argument(
        "--limit", type=count_argument(1), metavar="N", help="compare on N of the photographs, spread over all"
    )
    parser.add_argument(
        "--reseal",
        action="store_true",
        help="A is the ONNX file B after another program changed it: if both agree, also on the golden frames of B, "
        "write a manifest for A",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="REPORT.json", help="write everything to this file")
    parser.add_argument("--allow-host-code", action="store_true", help=HOST_CODE_HELP)
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw the images that differ most")


def run(arguments: argparse.Namespace) -> int:
    """Checks; returns the exit status: 0 without findings, 1 when the target or the comparison fails."""
    arguments.model = find_any_model(arguments.model)
    if arguments.against is not None:
        arguments.against = find_any_model(arguments.against)
    _check_arguments(arguments)
    report: dict[str, Any] = {}
    is_good = True
    if arguments.target:
        report["target"] = _check_target(arguments)
        is_good = not report["target"]["num_errors"]
    if arguments.against:
        comparison = _compare(arguments)
        report["comparison"] = comparison.to_dict()
        is_good = is_good and comparison.culprit is None
    if arguments.output is not None:
        files.write_text(arguments.output, json.dumps({"model": str(arguments.model), **report}, indent=2) + "\n")
    return 0 if is_good else 1


def _check_arguments(arguments: argparse.Namespace) -> None:
    """Refuses arguments that cannot work, before the work.

    Raises:
        UsageError: Lists the problems of the words.
        ConfigError: Lists those of the files.
    """
    problems = []
    if not (arguments.target or arguments.against):
        problems.append("check: name a --target to check the graph for, or a model to compare it with by --against")
    if arguments.reseal:
        problems += _reseal_problems(arguments)
    elif arguments.against and not (arguments.images or arguments.data):
        problems.append("check: --against needs photographs; name their folder with --images DIR, or --data PATH")
    if not arguments.against:
        given = [flag for flag in ("images", "data", "limit", "pictures") if getattr(arguments, flag) is not None]
        problems += [f"check: --{flag} is for a comparison; name a model with --against" for flag in given]
    problems += choice.problems_without_data(arguments)
    if problems:
        raise UsageError(problems)
    if arguments.images and not arguments.images.is_dir():
        problems.append(f"--images {arguments.images}: expected a folder of photographs")
    models = [path for path in (arguments.model, arguments.against) if path is not None]
    data: list[Path] = []
    if arguments.output is not None and arguments.data is not None and arguments.against:
        from edgerpn.train.data.splits import find_split

        data = [find_split(arguments.data, "val", choice.chosen(arguments)).annotations]
    problems += output_problems(arguments.output, [*models, *map(manifest_path, models), *data])
    if arguments.pictures is not None and arguments.pictures.is_file():
        problems.append(f"--pictures {arguments.pictures}: this is a file, expected a folder")
    if problems:
        raise ConfigError(problems)


def _reseal_problems(arguments: argparse.Namespace) -> list[str]:
    if arguments.against is None:
        return ["check: --reseal compares; name the exported ONNX file with --against"]
    problems = [f"check: --reseal is for ONNX files, got {path}" for path in (arguments.model, arguments.against)
                if path.suffix.lower() != ".onnx"]  # fmt: skip
    if arguments.target:
        problems.append("check: --reseal checks the target of the manifest; check --target in a second call")
    if arguments.model.exists() and arguments.against.exists() and arguments.model.samefile(arguments.against):
        problems.append(
            f"check: --reseal: {arguments.model} and {arguments.against} are one file; name the exported one"
        )
    return problems


def _check_target(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints the violations of the target's limits; returns them for the report."""
    from edgerpn.export.limits.check import find_violations
    from edgerpn.export.limits.graph import read_onnx
    from edgerpn.export.limits.rules import LAYOUT_USES

    proto, manifest = read_onnx(arguments.model)
    violations = find_violations(proto, arguments.target, manifest)
    if manifest is None:
        print(f"note: {arguments.model.name} has no manifest of edgerpn, so its interface is not checked, the rest is")
    elif manifest.layout in LAYOUT_USES:
        use = LAYOUT_USES[manifest.layout]
        print(f"note: {arguments.model.name} is for {use.program} alone, which runs it by {use.by}; edgerpn does not")
    for violation in violations:
        print(violation.text())
    num_errors = sum(violation.severity == "error" for violation in violations)
    num_warnings = len(violations) - num_errors
    verdict = "nothing that it cannot do" if not violations else f"{num_errors} errors, {num_warnings} warnings"
    print(f"{arguments.model} for {arguments.target}: {verdict}")
    return {
        "name": arguments.target,
        "has_manifest": manifest is not None,
        "num_errors": num_errors,
        "num_warnings": num_warnings,
        "violations": [dataclasses.asdict(violation) for violation in violations],
    }


def _compare(arguments: argparse.Namespace) -> Comparison:
    """Compares, prints the table and draws; returns the comparison."""
    images, dataset = _images(arguments)
    changed = _open_changed(arguments)
    if changed is None:
        return _compare_files(arguments, arguments.model, images, dataset)
    with changed as graph:
        if not arguments.reseal:
            print(
                f"{arguments.model} was changed since export: compared under the manifest of {arguments.against.name}"
            )
            return _compare_files(arguments, graph.copy, images, dataset)
        if not images and not graph.images:
            raise ConfigError(
                [f"{arguments.against}: it has no golden frames; name photographs with --images or --data"]
            )
        comparison = _compare_files(arguments, graph.copy, [*graph.images, *images], dataset)
        if comparison.culprit is None:
            graph.seal(comparison, dataset, functools.partial(print, flush=True))
            print(f"wrote {manifest_path(arguments.model)}, which names {arguments.against.name} as the parent")
        return comparison


def _open_changed(arguments: argparse.Namespace) -> AbstractContextManager[ChangedGraph] | None:
    """Returns model A as a changed form of model B, if it is one: by --reseal, or by its hash."""
    if any(path.suffix.lower() != ".onnx" for path in (arguments.model, arguments.against)):
        return None
    if not arguments.reseal and importlib.util.find_spec("onnx") is None:
        return None  # on a device; the runtime refuses a changed graph
    from edgerpn.export.compare.reseal import ChangedGraph, is_changed

    if not arguments.reseal and not is_changed(arguments.model):
        return None
    return ChangedGraph.opened(arguments.model, arguments.against)


def _compare_files(
    arguments: argparse.Namespace, model: Path, images: list[Path], dataset: Dataset | None
) -> Comparison:
    from edgerpn.export.compare.compare import compare_models
    from edgerpn.export.compare.comparison import format_comparison

    comparison = compare_models(
        model,
        arguments.against,
        images,
        dataset=dataset,
        allow_host_code=arguments.allow_host_code,
        log=functools.partial(print, flush=True),
    )
    print(format_comparison(comparison))
    if arguments.pictures is not None:
        from edgerpn.export.compare.difference_pictures import write_pictures

        written = write_pictures(comparison, arguments.pictures)
        print(f"drew {len(written)} picture{'' if len(written) == 1 else 's'} into {arguments.pictures}")
    culprit = comparison.culprit
    if culprit is None:
        print(f"the models agree within the tolerance of {comparison.precision}")
    else:
        print(f"error: the models were not shown to agree: {culprit}", file=sys.stderr)
    return comparison


def _images(arguments: argparse.Namespace) -> tuple[list[Path], Dataset | None]:
    """Returns the photographs to compare on, and their annotations; --reseal needs none.

    Raises:
        ConfigError: There are none.
        DataError: The annotations cannot be used.
    """
    dataset = None
    if arguments.data is None and arguments.images is None:
        return [], None
    log = functools.partial(print, file=sys.stderr)
    if arguments.data is not None:
        from edgerpn.train.data.coco import read_split
        from edgerpn.train.data.splits import find_split

        split = find_split(arguments.data, "val", choice.chosen(arguments), log)
        split = split.read_like(exif_rule(arguments.against))
        dataset = read_split(split._replace(images=arguments.images or split.images), verify="header")
        for problem in dataset.problems:
            log(f"{split.label}: {problem}")
        found = [record.file for record in dataset.records]
    else:
        found = list_photographs(arguments.images, log)
    if not found:
        raise ConfigError([f"{arguments.images or arguments.data}: no images in it to compare on"])
    return spread(found, arguments.limit or len(found)), dataset
