"""The search of the commands that take a checkpoint as well as an exported model."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from edgerpn.models import GENERAL, find_checkpoint, find_model


def find_any_model(model: str | os.PathLike[str]) -> Path:
    """Returns the file of a model, see `find_model`, or of the weights GENERAL that come with `edgerpn.train`.

    An installed ONNX file of that name comes first. Without PyTorch the weights are of no use, and the error says how
    to install the ONNX file.

    Raises:
        EngineLoadError: There is no such file and no such model.
    """
    return find_checkpoint(find_model(model, weights=(GENERAL,) if importlib.util.find_spec("torch") else ()))
