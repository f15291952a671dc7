"""Which backend runs which file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgerpn.errors import EngineLoadError
from edgerpn.runtime.backend import Backend
from edgerpn.runtime.onnxruntime_backend import OnnxRuntimeBackend


def open_backend(
    path: str | os.PathLike[str], *, providers: Sequence[str] | None = None, threads: int | None = None
) -> Backend:
    """Opens the backend that the file's suffix asks for.

    Args:
        path: An artifact, `model.onnx`; its manifest is beside it or inside.
        providers: ONNX Runtime execution providers in order of preference; None: CUDA if there, else the CPU.
        threads: CPU threads of one inference; None: one for each core that this process may use.

    Raises:
        EngineLoadError: No backend runs such files, or the backend cannot load this one.
        ManifestError: The file or its manifest is missing or malformed, or they do not belong together.
        MissingDependencyError: The backend's package is not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".onnx":
        return OnnxRuntimeBackend(path, providers=providers, threads=threads)
    if suffix in (".engine", ".plan"):
        raise EngineLoadError(
            f"{path}: TensorRT engines cannot be run yet; the TensorRT backend comes with the engine stage. "
            "Meanwhile run the model.onnx that the engine was built from."
        )
    hint = " Export it first: edgerpn export CHECKPOINT -o model.onnx" if suffix in (".pt", ".pth") else ""
    raise EngineLoadError(f"{path}: no backend runs files that end in {suffix!r}; known here: .onnx.{hint}")
