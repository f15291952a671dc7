"""Types of command-line arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def count_argument(minimum: int) -> Callable[[str], int]:
    """A converter to whole numbers of at least `minimum`, with an error that argparse shows as it is."""

    def convert(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) >= minimum):
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {minimum}, got {text!r}")
        return int(text)

    return convert


def size_argument(text: str) -> tuple[int, int]:
    """(height, width) from "384x640" or "640", with an error that argparse shows as it is."""
    # Imported late: NumPy would slow the help of every command down.
    from edgerpn.letterbox import parse_hw

    try:
        return parse_hw(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def names_argument(text: str) -> tuple[str, ...]:
    """Names from "cat,polar bear", each once and in order, with an error that argparse shows as it is."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names with commas between them, got {text!r}")
    return names
