"""Checkpoints: weights and resolved settings in one file, loaded without running code from it.

A run writes .pt files. Weights that travel are .safetensors files: float16, with the settings in the header, without
the state of training. The package holds one of these, `edgerpn.models.GENERAL`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import edgerpn
from edgerpn import files, settings
from edgerpn.errors import CheckpointError, ConfigError, require
from edgerpn.models import find_checkpoint
from edgerpn.train.config import TrainSettings
from edgerpn.train.network.model import Rpn
from edgerpn.train.network.weights import are_weights, load_tensors, read_safetensors

FORMAT = 2
"""Version of the layout of .pt files."""
_WEIGHTS_FORMAT = 1
_HEADER = "edgerpn"
"""Key of our JSON text in the header of a .safetensors file."""


def _is_table(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, kind) for k, v in value.items())


_FORMS: dict[str, Callable[[object], bool]] = {
    "settings": lambda value: isinstance(value, Mapping),
    "weights": are_weights,
    "step": lambda value: isinstance(value, int),
    "metrics": lambda value: _is_table(value, (int, float)),
    "data_sha256": lambda value: isinstance(value, str),
    "data_folder": lambda value: isinstance(value, str),
    "versions": lambda value: _is_table(value, str),
    "training": lambda value: value is None or isinstance(value, dict),
}
"""Whether an entry of a file has the type of its field, by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The content of a checkpoint file."""

    settings: TrainSettings
    """Resolved settings of the run."""
    weights: dict[str, Tensor]
    """Weights to evaluate and export (the average, if the run keeps one), on the CPU."""
    step: int
    """Optimizer steps taken."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Recall on the validation images at that step; empty before the first evaluation."""
    data_sha256: str = ""
    """Hash of the training annotation file."""
    data_folder: str = ""
    """Absolute path of the training folder, in which the export looks for images to compare on."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the programs that wrote it."""
    training: dict[str, Any] | None = None
    """Training state to resume from (raw weights, optimizer, counters); None in `best.pt`."""


def versions() -> dict[str, str]:
    """Returns the versions that a run depends on."""
    return {
        "edgerpn": edgerpn.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # weights_only refuses a TorchVersion
        "numpy": np.__version__,
    }


def save_checkpoint(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Writes a checkpoint atomically: the old file stays until the new one is complete and on the disk.

    Raises:
        OSError: It cannot be written, for example because the disk is full; the old file is unchanged.
    """
    content = {
        "format": FORMAT,
        "settings": settings.to_dict(checkpoint.settings),
        "weights": checkpoint.weights,
        "step": checkpoint.step,
        "metrics": checkpoint.metrics,
        "data_sha256": checkpoint.data_sha256,
        "data_folder": checkpoint.data_folder,
        "versions": versions(),
        "training": checkpoint.training,
    }
    # Through memory: the errors of torch.save do not name the reason for a failed write.
    packed = io.BytesIO()
    torch.save(content, packed)
    with files.replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(packed.getbuffer())
        file.flush()
        # After a loss of power the new name could be on the disk without the content.
        os.fsync(file.fileno())


def save_weights(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Writes a checkpoint to share: .safetensors, weights in float16, neither training state nor data folder.

    Raises:
        CheckpointError: A weight is too large for float16.
        MissingDependencyError: The package safetensors is not installed.
        OSError: It cannot be written; the old file is unchanged.
    """
    writer = require("safetensors.torch", extra="train", purpose="writing weights")
    # Contiguous: the format stores plain rows.
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in checkpoint.weights.items()
    }
    too_large = [name for name, value in tensors.items() if not value.isfinite().all()]
    if too_large:
        raise CheckpointError(f"{path}: not written: {too_large[0]!r} holds numbers that float16 does not")
    # Whoever starts from them does not need to know how they began, which may name a path.
    loop = dataclasses.replace(checkpoint.settings.loop, start="random")
    header = {
        "format": _WEIGHTS_FORMAT,
        "settings": settings.to_dict(dataclasses.replace(checkpoint.settings, loop=loop)),
        "step": checkpoint.step,
        "metrics": checkpoint.metrics,
        "data_sha256": checkpoint.data_sha256,
        "versions": checkpoint.versions,
    }
    files.write_bytes(path, writer.save(tensors, metadata={_HEADER: json.dumps(header, sort_keys=True)}))


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint with all tensors on the CPU; runs no code from the file.

    Args:
        path: A .pt file of `save_checkpoint`, a .safetensors file of `save_weights`, or GENERAL.

    Raises:
        CheckpointError: The file is missing, damaged, not a checkpoint of edgerpn, or of another format.
        MissingDependencyError: The package safetensors is needed and not installed.
    """
    path = find_checkpoint(Path(path))
    if not path.is_file():
        what = f"this is a folder; did you mean {path / 'best.pt'}?" if path.is_dir() else "no such checkpoint file"
        raise CheckpointError(f"{path}: {what}")
    content = _read_weights(path) if path.suffix == ".safetensors" else _read(path)
    fields = {field.name for field in dataclasses.fields(Checkpoint)}
    missing = sorted(fields - set(content))
    if missing:
        raise CheckpointError(
            f"{path}: the checkpoint lacks {', '.join(missing)}: another program changed it; use the file that edgerpn "
            "train wrote, or train again"
        )
    wrong = [name for name, is_good in _FORMS.items() if not is_good(content[name])]
    if wrong:
        raise CheckpointError(
            f"{path}: {', '.join(wrong)}: not as edgerpn train writes them (got {type(content[wrong[0]]).__name__}): "
            "another program changed the file; use the one that edgerpn train wrote, or train again"
        )
    try:
        resolved = settings.from_dict(TrainSettings, content["settings"], source=str(path))
    except ConfigError as error:
        raise CheckpointError(f"{error}\nAnother version of edgerpn wrote this checkpoint.") from error
    return Checkpoint(settings=resolved, **{name: content[name] for name in fields - {"settings"}})


def _read(path: Path) -> Mapping[str, Any]:
    """Reads the content of a checkpoint file of this format.

    Raises:
        CheckpointError: The file is damaged, or not such a checkpoint.
    """
    content = load_tensors(path, expected="a checkpoint of edgerpn")
    if not isinstance(content, Mapping) or "format" not in content or "weights" not in content:
        raise CheckpointError(f"{path}: not a checkpoint of edgerpn (train one with `edgerpn train`)")
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {content['format']}, but this version of edgerpn reads format {FORMAT} only; "
            "train again, or use the version that wrote it"
        )
    return content


def _read_weights(path: Path) -> Mapping[str, Any]:
    """Reads the content of a file of `save_weights`; the weights become float32.

    Raises:
        CheckpointError: The file is damaged, or not such a file.
        MissingDependencyError: The package safetensors is not installed.
    """
    tensors, texts = read_safetensors(path)
    try:
        header = json.loads(texts.get(_HEADER, ""))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise CheckpointError(
            f"{path}: weights without settings of edgerpn in the header, so not one of its checkpoints"
        )
    if header.get("format") != _WEIGHTS_FORMAT:
        raise CheckpointError(
            f"{path}: weights of format {header.get('format')}, but this version of edgerpn reads format "
            f"{_WEIGHTS_FORMAT} only; use the version that wrote them"
        )
    weights = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    return {**header, "weights": weights, "data_folder": "", "training": None}


def load_model(path: str | os.PathLike[str]) -> tuple[Rpn, Checkpoint]:
    """Returns the network of a checkpoint, in eval mode on the CPU, and the checkpoint.

    Raises:
        CheckpointError: The file is not a checkpoint, or its weights do not fit its settings.
    """
    checkpoint = load_checkpoint(path)
    model = Rpn(checkpoint.settings.model)
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: the weights do not fit the settings in the file: {error}") from error
    return model.eval(), checkpoint
