"""Reading PyTorch files from anybody: tensors and plain values only, no code from the file is run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from edgerpn.errors import CheckpointError


def load_tensors(path: Path, *, expected: str) -> Any:
    """The content of a file written by `torch.save`, on the CPU.

    Args:
        path: The file.
        expected: What the file should have been, for the error: "a checkpoint of edgerpn".

    Raises:
        CheckpointError: The file cannot be read, is damaged, or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch.load raise almost any type
        raise CheckpointError(f"{path}: not {expected}, or damaged: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, pickle.UnpicklingError):
        # torch's own text advises to load the file with code and all, which nobody should do with a stranger's file.
        return "no PyTorch file, or one that holds more than tensors and plain values"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
