"""The command `edgerpn bench`: latency, rate, power and recall of an artifact on this machine.

Without --data it needs what `edgerpn run` needs; with --data also the package that measures recall, but no torch.
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgerpn import files
from edgerpn.arguments import (
    HOST_CODE_HELP,
    add_settings_arguments,
    count_argument,
    load_settings,
    output_problems,
    print_settings,
)
from edgerpn.errors import ConfigError, DataError, UsageError, require
from edgerpn.manifest import manifest_path
from edgerpn.models import find_model
from edgerpn.train.data import choice

if TYPE_CHECKING:
    from edgerpn.images.header import Exif
    from edgerpn.proposals import Proposals
    from edgerpn.runtime.bench.bench import BenchRequest, MeasureRecall
    from edgerpn.runtime.bench.report import RecallFacts
    from edgerpn.train.data.coco import Dataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "model", type=Path, nargs="?", metavar="MODEL", help="ONNX file or engine; or an installed model (general)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="data set (COCO, YOLO, VOC): its images are run, their recall measured",
    )
    choice.add_arguments(parser)
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of the images of --data; without --data: photographs to run"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="REPORT.json", help="write the report here, and its page beside it (.html)"
    )
    parser.add_argument("--threads", metavar="N", type=count_argument(1), help="CPU threads of one inference")
    parser.add_argument(
        "--provider", metavar="NAME", action="append", default=[], help="ONNX Runtime execution provider, as in `run`"
    )
    parser.add_argument("--allow-host-code", action="store_true", help=HOST_CODE_HELP)
    add_settings_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measures; returns the exit status."""
    from edgerpn.runtime.bench.config import BenchConfig

    config = load_settings(BenchConfig, arguments, {})
    if arguments.print_config:
        return print_settings(config)
    if arguments.model is None:
        raise UsageError(["bench: MODEL: needed, see `edgerpn bench --help`"])
    if problems := choice.problems_without_data(arguments):
        raise UsageError(problems)
    model = find_model(arguments.model)
    _check_output(arguments, model)
    from edgerpn.runtime.bench.bench import run_bench
    from edgerpn.runtime.bench.page import render

    log = functools.partial(print, file=sys.stderr)
    report = run_bench(_request(arguments, model), config, log=log)
    print(report.text())
    if arguments.output is not None:
        files.write_text(arguments.output, json.dumps(report.to_dict(), indent=1) + "\n")
        files.write_text(_page_path(arguments.output), render(report))
        log(f"wrote {arguments.output} and {_page_path(arguments.output)}")
    return 0


def _check_output(arguments: argparse.Namespace, model: Path) -> None:
    """Refuses a report that would replace an input or cannot be written, before the work.

    Raises:
        ConfigError: Names the report.
        UsageError: Its name is that of a page.
    """
    output: Path | None = arguments.output
    if output is None:
        return
    if output.suffix.lower() in (".html", ".htm"):
        raise UsageError([f"--output {output}: expected a name such as report.json; the page goes beside it, as .html"])
    inputs = [model, manifest_path(model)]
    if arguments.data is not None:
        from edgerpn.train.data.splits import find_split

        inputs.append(find_split(arguments.data, "val", choice.chosen(arguments)).annotations)
    problems = output_problems(output, inputs)
    if (page := _page_path(output)).exists() and not output.exists():
        problems.append(f"{page}: exists without {output.name} and would be overwritten; choose another name")
    if problems:
        raise ConfigError(problems)
    output.parent.mkdir(parents=True, exist_ok=True)


def _page_path(output: Path) -> Path:
    return output.with_suffix(".html")


def _request(arguments: argparse.Namespace, model: Path) -> BenchRequest:
    """Reads the data set or finds the photographs, before anything is measured.

    Raises:
        DataError: They cannot be used.
        MissingDependencyError: The package that measures recall is not installed.
    """
    from edgerpn.runtime.bench.bench import BenchRequest
    from edgerpn.runtime.bench.report import MADE_UP

    images: tuple[Path, ...] = ()
    measure: MeasureRecall | None = None
    exif: Exif | None = None
    if arguments.data is not None:
        dataset = _read_data(arguments, model)
        images = tuple(record.file for record in dataset.records)
        exif = dataset.records[0].exif if dataset.records else None  # one rule holds for all images of a set
        measure = functools.partial(_measure, dataset, str(arguments.data))
    elif arguments.images is not None:
        images = _photographs(arguments.images)
    return BenchRequest(
        model=model,
        command=_command(arguments),
        images=images,
        exif=exif,
        origin=str(arguments.data or arguments.images or MADE_UP),
        measure_recall=measure,
        providers=tuple(arguments.provider),
        threads=arguments.threads,
        allow_host_code=arguments.allow_host_code,
    )


def _read_data(arguments: argparse.Namespace, model: Path) -> Dataset:
    from edgerpn.export.photographs import exif_rule
    from edgerpn.train.data.coco import read_split
    from edgerpn.train.data.splits import find_split

    require("faster_coco_eval", extra="recall", purpose="measuring recall")
    log = functools.partial(print, file=sys.stderr)
    split = find_split(arguments.data, "val", choice.chosen(arguments), log)
    if arguments.images is not None:
        split = split._replace(images=arguments.images)
    dataset = read_split(split.read_like(exif_rule(model)), verify="header")
    for problem in dataset.problems:
        log(f"{split.label}: {problem}")
    return dataset


def _photographs(folder: Path) -> tuple[Path, ...]:
    from edgerpn.images.formats import is_image_file

    if not folder.is_dir():
        raise DataError(f"--images {folder}: this folder does not exist; expected a folder of photographs")
    found = sorted(filter(is_image_file, folder.iterdir()))
    if not found:
        raise DataError(f"--images {folder}: no photographs in it")
    return tuple(found)


def _measure(dataset: Dataset, data: str, proposals: Mapping[int, Proposals]) -> RecallFacts:
    from edgerpn.runtime.bench.report import RecallFacts
    from edgerpn.train.recall.average_recall import average_recall
    from edgerpn.train.recall.results import FoundBoxes

    found = {
        record.image_id: FoundBoxes.of(proposals[number].boxes, proposals[number].scores)
        for number, record in enumerate(dataset.records)
    }
    metrics = average_recall(dataset.coco_ground_truth(), found)
    return RecallFacts(
        data=data,
        data_sha256=dataset.sha256,
        num_images=len(dataset.records),
        # -1 means that there is no object of that size.
        metrics={name: round(value, 5) for name, value in metrics.items() if value >= 0},
    )


def _command(arguments: argparse.Namespace) -> str:
    """Returns the command line that repeats this run."""
    words = ["edgerpn", "bench", str(arguments.model)]
    classes = ",".join(arguments.classes) if arguments.classes else None
    named = (
        ("--data", arguments.data), ("--format", arguments.format), ("--split", arguments.split),
        ("--classes", classes), ("--exif", arguments.exif),
        ("--images", arguments.images), ("--threads", arguments.threads), ("--config", arguments.config),
    )  # fmt: skip
    words += [word for flag, value in named if value is not None for word in (flag, str(value))]
    words += [word for name in arguments.allow for word in ("--allow", name)]
    words += [word for name in arguments.provider for word in ("--provider", name)]
    words += ["--allow-host-code"] if arguments.allow_host_code else []
    words += [word for text in arguments.set for word in ("--set", text)]
    return shlex.join(words)
