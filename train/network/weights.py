"""Reading weights from untrusted files: tensors and plain values only, without running code from the file."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgerpn.errors import CheckpointError, require
from edgerpn.files import native_path
from edgerpn.train.network.layers import Backbone


def load_tensors(path: Path, *, expected: str) -> Any:
    """Reads a file of `torch.save`, with tensors on the CPU.

    Args:
        path: The file.
        expected: The expected content, for the error: "a checkpoint of edgerpn".

    Raises:
        CheckpointError: The file cannot be read, is damaged, or contains more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # with damaged bytes torch.load raises almost any type
        if _is_truncated(path):
            raise CheckpointError(f"{path}: truncated: a file of PyTorch without its end; copy it again") from error
        raise CheckpointError(f"{path}: not {expected}, or damaged: {_reason(error)}") from error


def _is_truncated(path: Path) -> bool:
    """Returns whether a file begins as those of `torch.save` do, but lacks the list of contents at their end."""
    try:
        with path.open("rb") as file:
            start = file.read(1024)
            return start.startswith(b"PK\x03\x04") and b"/data.pkl" in start and not zipfile.is_zipfile(file)
    except OSError:
        return False


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, pickle.UnpicklingError):
        # The text of torch advises weights_only=False, which would run code from the file.
        return "not a PyTorch file, or it holds more than tensors and plain values"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def load_backbone_weights(backbone: Backbone, file: str | os.PathLike[str]) -> int:
    """Loads a torchvision state dict (a downloaded .pth, or .safetensors) into a backbone with torchvision's names.

    Skips the classifier and layers that this backbone does not have. torchvision's models take RGB and ours BGR, so the
    input channels of the first convolution are swapped.

    Returns:
        Number of tensors loaded.

    Raises:
        CheckpointError: The file cannot be read, or its tensors do not fit.
    """
    path = Path(file)
    own = backbone.state_dict()
    state = {
        name.removeprefix("backbone.body.").removeprefix("module."): value
        for name, value in read_state_dict(path).items()
    }
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    if missing:
        raise CheckpointError(
            f"{path}: not weights of this backbone: {len(missing)} of {len(own)} tensors are missing, first "
            f"{missing[0]!r}. Expected a torchvision checkpoint of the same network as model.backbone."
        )
    wrong = [n for n in own if n in state and state[n].shape != own[n].shape]
    if wrong:
        raise CheckpointError(
            f"{path}: {wrong[0]!r} has shape {tuple(state[wrong[0]].shape)}, expected {tuple(own[wrong[0]].shape)}"
        )
    chosen = {name: state[name] for name in own if name in state}
    first = next(name for name, value in chosen.items() if value.ndim == 4)
    chosen[first] = chosen[first].flip(1)
    backbone.load_state_dict(chosen, strict=False)
    return len(chosen)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads tensors, on the CPU, and the texts of the header.

    Raises:
        CheckpointError: The file cannot be read, or is damaged.
        MissingDependencyError: The package safetensors is not installed.
    """
    library = require("safetensors", extra="train", purpose=f"reading {path.name}")
    try:
        with native_path(path) as native, library.safe_open(native, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (library.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not weights, or damaged: {error}") from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads a state dict of `torch.save` or safetensors, without running code from the file.

    Raises:
        CheckpointError: The file cannot be read, or has other content.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    state = load_tensors(path, expected="weights")
    if not are_weights(state):
        raise CheckpointError(
            f"{path}: expected a state dict (name -> tensor), got {type(state).__name__}; they must be dense and real"
        )
    found: dict[str, Tensor] = state
    return found


def are_weights(values: object) -> bool:
    """Returns whether values are tensors by names: dense ones with data, neither quantized nor complex."""
    return isinstance(values, dict) and all(
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex())
        for name, value in values.items()
    )
