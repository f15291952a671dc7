"""The choices about a data set: its format, its validation split, its classes, and what is accepted of it."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from typing import Literal, get_args

from edgerpn.arguments import names_argument
from edgerpn.images.header import Exif
from edgerpn.train.data.rules import RULE_NAMES

ExifChoice = Literal["auto", "apply", "ignore"]
DataFormat = Literal["auto", "coco", "yolo", "voc", "openimages", "labelme", "cvat", "labelstudio"]
FORMATS: tuple[str, ...] = get_args(DataFormat)
_SPLIT_SYNTAX = (
    "FRACTION such as 0.2, FRACTION@SEED such as 0.2@7, or the names of splits such as val=test or train=train,val=test"
)
_DEFAULT_FRACTION = 0.2
_FRACTION = re.compile(r"(0?\.\d+)(?:@(\d{1,9}))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitRule:
    """The meaning of `--split`."""

    fraction: float | None = None
    """Share of the training images to hold out for validation, even if there is a validation split; None: only for a
    set without one, a fifth."""
    seed: int = 0
    """Seed of that choice."""
    train: str = "train"
    """Split to train on."""
    val: str = "val"
    """Split to validate on."""

    @property
    def share(self) -> float:
        """Share to hold out where a set has no validation split."""
        return self.fraction or _DEFAULT_FRACTION


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRules:
    """The treatment of image files; the settings of the same names explain the values."""

    exif: ExifChoice = "auto"
    """Whether images are turned by their EXIF orientation; "auto": not, and a set in which it matters is refused."""
    follow_links: bool = False
    """Whether images and their label files may be links to files outside of their folder."""
    damaged: Literal["drop", "use", "refuse"] = "drop"
    """Treatment of images that decode in spite of damage."""

    @property
    def reading(self) -> Exif:
        """The rule by which images are read."""
        return "apply" if self.exif == "apply" else "ignore"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataChoice:
    """Format, split, classes and treatment of image files as given."""

    format: str = "auto"
    """One of `FORMATS`; "auto": recognised by the files."""
    split: str = ""
    """FRACTION, FRACTION@SEED or names of splits, see `parse_split`; "": the set's own, or a fifth held out."""
    allow: tuple[str, ...] = ()
    """Rules about whole sets that are accepted, see `edgerpn.train.data.rules`."""
    classes: tuple[str, ...] = ()
    """Names of the classes whose boxes count; empty: all."""
    images: ImageRules = ImageRules()
    """Treatment of image files."""

    @property
    def rule(self) -> SplitRule:
        """The meaning of `split`."""
        return parse_split(self.split)


def parse_split(text: str) -> SplitRule:
    """Reads "0.2", "0.2@7", "val=test" or "train=train,val=test"; "" is the default.

    Raises:
        ValueError: The text has another form.
    """
    if not text:
        return SplitRule()
    match = _FRACTION.fullmatch(text)
    if match is not None and 0 < float(match[1]) < 1:
        return SplitRule(fraction=float(match[1]), seed=int(match[2] or 0))
    names = dict(part.split("=", 1) for part in text.split(",") if part.count("=") == 1)
    is_whole = len(names) == text.count(",") + 1
    if not is_whole or not names.keys() <= {"train", "val"} or not set(names.values()) <= {"train", "val", "test"}:
        raise ValueError(f"expected {_SPLIT_SYNTAX}; got {text!r}")
    rule = SplitRule(train=names.get("train", "train"), val=names.get("val", "val"))
    if rule.train == rule.val:
        raise ValueError(f"expected different splits for training and validation, got {text!r}")
    return rule


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--format`, `--split`, `--classes`, `--allow`, `--exif` and `--follow-links`, for a data set."""
    parser.add_argument(
        "--format", choices=FORMATS, default=None, help="format of the data set (default: recognised by the files)"
    )
    parser.add_argument(
        "--split",
        type=_split_argument,
        metavar="SPLIT",
        help="validation split: share of the training images to hold out (0.2, or 0.2@SEED), or names (val=test); "
        "default: the set's own, else 0.2",
    )
    parser.add_argument(
        "--allow",
        action="append",
        choices=RULE_NAMES,
        default=[],
        metavar="NAME",
        help="accept a set that this check refuses, for those who know better; the error names it; may be repeated",
    )
    parser.add_argument(
        "--classes",
        type=names_argument,
        metavar="A,B",
        help="use the boxes of these classes only (default: all); the others count as background",
    )
    parser.add_argument(
        "--exif",
        choices=("apply", "ignore"),
        help="images with an EXIF orientation: turn them as viewers do, or read them as stored (default: as the model "
        "was trained, else refuse a set in which it matters)",
    )
    parser.add_argument(
        "--follow-links", action="store_true", help="read images and label files that are links out of the data folder"
    )


def chosen(arguments: argparse.Namespace) -> DataChoice:
    """Returns the choice of a command line."""
    return DataChoice(
        format=arguments.format or "auto",
        split=arguments.split or "",
        classes=arguments.classes or (),
        allow=tuple(dict.fromkeys(arguments.allow)),
        images=ImageRules(exif=arguments.exif or "auto", follow_links=arguments.follow_links),
    )


def problems_without_data(arguments: argparse.Namespace) -> list[str]:
    """Returns the problem of arguments about a data set where the optional `--data` is missing, if there is one."""
    if arguments.data is not None:
        return []
    names = ("format", "split", "allow", "classes", "exif", "follow_links")
    given = ["--" + name.replace("_", "-") for name in names if getattr(arguments, name)]
    return [f"{' and '.join(given)}: for --data PATH only; name a data set"] if given else []


def _split_argument(text: str) -> str:
    try:
        parse_split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text
