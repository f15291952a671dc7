"""Opens the backend for a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from edgerpn.errors import ArtifactMismatchError, EngineLoadError
from edgerpn.models import CHECKPOINT_SUFFIXES
from edgerpn.runtime.backends.contract import Backend, EngineConfig
from edgerpn.runtime.backends.onnxruntime import OnnxRuntimeBackend
from edgerpn.runtime.backends.served.config import ServerConfig, is_served
from edgerpn.runtime.onnx_session import Provider

OnMismatch = Literal["fail", "rebuild"]

_ENGINES = (".engine", ".plan")


def open_backend(
    path: str | os.PathLike[str],
    *,
    providers: Sequence[Provider] | None = None,
    threads: int | None = None,
    on_mismatch: OnMismatch = "fail",
    allow_host_code: bool = False,
    engine: EngineConfig | None = None,
    server: ServerConfig | None = None,
    verify: bool = True,
) -> Backend:
    """Opens the backend for the file's suffix, or for the address of a server.

    An engine is a program: never open one from somebody you do not trust. The hash in its manifest shows that the file
    is complete, not who made it.

    Args:
        path: An artifact: `model.onnx` or `model.engine`, with its manifest beside it (or inside, for ONNX); or the
            address of a model that a server runs, as text, see `edgerpn.runtime.backends.served`.
        providers: ONNX Runtime execution providers in order of preference; None: CUDA if there, else the CPU.
        threads: CPU threads of one inference; None: one for each core that this process may use. Engines ignore it.
        on_mismatch: Reaction to an engine built for another machine or version, see `edgerpn inspect`: `fail` raises;
            `rebuild` builds it again from the ONNX file beside it, which takes minutes.
        allow_host_code: Whether a version-compatible engine may contain code for the CPU.
        engine: Settings of a loaded engine; None: the defaults.
        server: Settings of the server behind an address; None: the defaults.
        verify: False opens an ONNX file that was changed since export, with a warning in the log; its inputs and
            outputs must still be those of its manifest. An engine is always verified.

    Raises:
        EngineLoadError: No backend runs such files, or the backend cannot load this one or reach its server.
        ManifestError: The file or its manifest is missing or malformed, or they do not belong together.
        MissingDependencyError: The backend's package is not installed.
    """
    if on_mismatch not in ("fail", "rebuild"):
        raise ValueError(f"on_mismatch: expected fail or rebuild, got {on_mismatch!r}")
    if is_served(path):
        if providers or not verify:
            raise EngineLoadError("providers and unsealed are for files; a server chooses how it runs its model")
        # Imported late, because a file does not need it.
        from edgerpn.runtime.backends.served.backend import ServedBackend

        return ServedBackend(os.fspath(path), server or ServerConfig())
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return OnnxRuntimeBackend(path, providers=providers, threads=threads, verify=verify)
    if suffix in _ENGINES:
        if providers:
            raise EngineLoadError(f"{path}: providers are for ONNX Runtime; an engine runs on the GPU it was built for")
        if not verify:
            raise EngineLoadError(
                f"{path}: an engine runs under the manifest of its build only; unsealed is for ONNX files"
            )
        return _open_engine(path, on_mismatch, allow_host_code=allow_host_code, config=engine or EngineConfig())
    if path.is_dir():
        found = [name for name in ("model.onnx", "model.engine", "best.pt") if (path / name).is_file()]
        hint = f"; did you mean {path / found[0]}?" if found else ""
        raise EngineLoadError(f"{path}: this is a folder, and a model is a file{hint}")
    hint = (
        " Export it first: edgerpn export CHECKPOINT -o model.onnx" if suffix in (*CHECKPOINT_SUFFIXES, ".pth") else ""
    )
    known = ", ".join((".onnx", *_ENGINES))
    raise EngineLoadError(f"{path}: no backend runs files that end in {suffix!r}; known here: {known}.{hint}")


def _open_engine(path: Path, on_mismatch: OnMismatch, *, allow_host_code: bool, config: EngineConfig) -> Backend:
    # Imported late, because an ONNX model does not need it.
    from edgerpn.runtime.backends.tensorrt.backend import TensorRtBackend
    from edgerpn.runtime.backends.tensorrt.rebuild import rebuild

    try:
        return TensorRtBackend(path, allow_host_code=allow_host_code, config=config)
    except ArtifactMismatchError as error:
        if on_mismatch == "fail":
            raise
        rebuild(path, error)
        return TensorRtBackend(path, allow_host_code=allow_host_code, config=config)
