"""Reading weights from files of others: tensors and plain values only, no code from a file is run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgerpn.errors import CheckpointError, require
from edgerpn.train.network.layers import Backbone


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


def load_backbone_weights(backbone: Backbone, file: str | os.PathLike[str]) -> int:
    """Loads a torchvision state dict (a downloaded .pth, or .safetensors) into a backbone with torchvision's names.

    The classifier is left out, layers that this backbone does not have too. torchvision's models eat RGB and ours
    BGR: the input channels of the first convolution are swapped.

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


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    purpose = f"reading {path.name}"
    library = require("safetensors", extra="safetensors", purpose=purpose)
    reader = require("safetensors.torch", extra="safetensors", purpose=purpose)
    try:
        return dict(reader.load_file(path))
    except (library.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not weights, or damaged: {error}") from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a state dict, from `torch.save` or safetensors; nothing in the file is run.

    Raises:
        CheckpointError: The file cannot be read, or holds something else.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    state = load_tensors(path, expected="weights")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: expected a state dict (name -> tensor), got {type(state).__name__}")
    return state
