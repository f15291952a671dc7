"""Models by name: the files that installed packages bring.

A package registers the path of an exported model, beside which its manifest lies, as an entry point:

    [project.entry-points."edgerpn.models"]
    street = "streetmodels:STREET"

    STREET = Path(__file__).with_name("street.onnx")

`edgerpn run street video.mp4` and `edgerpn.runtime.load("street")` then run it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from edgerpn.errors import EngineLoadError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

CHECKPOINT_SUFFIXES = (".pt", ".safetensors")
"""Suffixes of the checkpoints that runs write, and of weights to share."""
GROUP = "edgerpn.models"
"""Group of the entry points by which packages bring models."""
GENERAL = "general"
"""Name of the weights in `edgerpn.train`, accepted wherever a checkpoint is, and of the model exported from them."""
GENERAL_WEIGHTS = Path(__file__).parent / "train" / "weights" / "edge-general.safetensors"
"""The file of these weights; missing where `edgerpn.train` is not installed."""
GENERAL_MODELS = (GENERAL, "general-384x640")
"""Models of the package edgerpn-general, the folder general/ of the repository; the first is the default size."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def find_model(model: str | os.PathLike[str], *, weights: Collection[str] = ()) -> Path:
    """Returns a path unchanged, and for a name the file of the installed package that brings this model.

    Only a text of ASCII letters, digits, - and _ can be a name; as a `Path`, `./street` is the name `street`. An
    existing file wins over a name; an installed model wins over a folder, which is never a model (a clone of edgerpn
    has a folder of the name `general`).

    Args:
        model: A path, whether or not it exists, or a name.
        weights: Names that the caller can use without a file; they are returned when no package brings a model of
            the name.

    Raises:
        EngineLoadError: The text is a name, and there is no such file and no installed model; or the package that
            brings the model is broken.
    """
    text = os.fspath(model)
    path = Path(text)
    if not _NAME.fullmatch(text) or path.is_file():
        return path
    # Imported late: only a name needs it.
    from importlib.metadata import entry_points

    entries = {entry.name: entry for entry in reversed(tuple(entry_points(group=GROUP)))}
    if text in entries:
        return _file_of(entries[text])
    if text in weights or (path.exists() and text not in GENERAL_MODELS):
        return path
    hint = ""
    if not entries.keys() >= {*GENERAL_MODELS}:
        names = " and ".join(GENERAL_MODELS)
        hint = f". {names} come with the package edgerpn-general; in a clone of edgerpn: pip install ./general"
    raise EngineLoadError(
        f"{text}: no such file, and a model of this name is not installed; "
        f"installed: {', '.join(sorted(entries)) or 'none'}{hint}"
    )


def find_checkpoint(file: Path) -> Path:
    """Returns a path unchanged, and for GENERAL the file of the weights, unless there is a file of this name."""
    return GENERAL_WEIGHTS if str(file) == GENERAL and not file.is_file() else file


def is_checkpoint(file: Path) -> bool:
    """Returns whether a path names a checkpoint, by its suffix."""
    return file.suffix in CHECKPOINT_SUFFIXES


def _file_of(entry: EntryPoint) -> Path:
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "another package"
    where = f"{entry.name}: {entry.value} of {package}"
    try:
        value = entry.load()
    except Exception as error:
        raise EngineLoadError(f"{where} does not import: {type(error).__name__}: {error}") from error
    if not isinstance(value, (str, os.PathLike)) or not Path(value).is_file():
        raise EngineLoadError(f"{where}: expected the path of a model file, got {value!r}; install the package again")
    return Path(value)
