"""Command-line arguments that several commands share."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

Config = TypeVar("Config")

HOST_CODE_HELP = "let a version-compatible engine run its own code on the CPU; only for an engine that you trust"
"""Help of the flag `--allow-host-code`."""
UNSEALED_HELP = "run an ONNX file that was changed since export, unproven; `edgerpn check --reseal` proves it"
"""Help of the flag `--unsealed`."""


def count_argument(minimum: int) -> Callable[[str], int]:
    """Returns a converter to whole numbers of at least `minimum`; argparse shows its error unchanged."""

    def convert(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) >= minimum):
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {minimum}, got {text!r}")
        return int(text)

    return convert


def share_argument(*, above_zero: bool = False) -> Callable[[str], float]:
    """Returns a converter to numbers from 0 (or above it) to 1; argparse shows its error unchanged."""

    def convert(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not (0 < number <= 1 or (number == 0 and not above_zero)):
            expected = "above 0, to 1" if above_zero else "from 0 to 1"
            raise argparse.ArgumentTypeError(f"expected a number {expected}, got {text!r}")
        return number

    return convert


def size_argument(text: str) -> tuple[int, int]:
    """Returns (height, width) from "384x640" or "640"; argparse shows its error unchanged."""
    # Imported late: NumPy would delay the help of every command.
    from edgerpn.letterbox import parse_hw

    try:
        return parse_hw(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def names_argument(text: str) -> tuple[str, ...]:
    """Returns the different names of "cat,polar bear" in order; argparse shows its error unchanged."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names separated by commas, got {text!r}")
    return names


def flag_overrides(arguments: argparse.Namespace, settings: Mapping[str, str]) -> list[str]:
    """Returns overrides such as "batch=4" for the flags of a command line; `settings` names each flag's setting."""
    values = {setting: getattr(arguments, flag) for flag, setting in settings.items()}
    # Of a switch, only its presence means something.
    return [
        f"{setting}={_toml(value)}" for setting, value in values.items() if value is not None and value is not False
    ]


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, (tuple, list)) else str(value)


def add_settings_arguments(parser: argparse.ArgumentParser, *, contents: str = "settings") -> None:
    """Adds --config, a file of `contents`, --set and --print-config."""
    parser.add_argument("--config", metavar="FILE.toml", help=contents)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one setting; takes precedence over the file; may be repeated",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings and exit")


def load_settings(cls: type[Config], arguments: argparse.Namespace, flags: Mapping[str, str]) -> Config:
    """Returns the settings of a command line: defaults < --config < `flags`, as in `flag_overrides` < --set.

    Raises:
        ConfigError: The file cannot be read, a key is unknown, or a value has the wrong type or range.
    """
    # Imported late: it would delay the help of every command.
    from edgerpn import settings

    files = [arguments.config] if arguments.config else []
    return settings.load(cls, files=files, overrides=[*flag_overrides(arguments, flags), *arguments.set])


def print_settings(config: Any) -> int:
    """Prints the settings, as --print-config asks for; returns the exit status."""
    from edgerpn import settings

    sys.stdout.write(settings.to_toml(config))
    return 0


def output_problems(output: Path | None, inputs: Iterable[Path | None]) -> list[str]:
    """Returns the reasons against this file as `--output`, a line each: it is a folder, or one of the `inputs`."""
    if output is None:
        return []
    if output.is_dir():
        return [f"--output {output}: this is a folder, expected the name of a file"]
    if output.resolve() in {path.resolve() for path in inputs if path is not None}:
        return [f"--output {output}: this is an input of the command and would be overwritten"]
    return []
