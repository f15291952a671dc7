"""Types of command-line arguments that several commands share."""

from __future__ import annotations

import argparse

from edgerpn.letterbox import parse_hw


def count_argument(text: str) -> int:
    """A positive whole number, with an error that argparse shows as it is."""
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")


def size_argument(text: str) -> tuple[int, int]:
    """(height, width) from "384x640" or "640", with an error that argparse shows as it is."""
    try:
        return parse_hw(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
