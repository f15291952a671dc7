"""The one place that opens sessions of ONNX Runtime: for the model of a run, and for the encoder of a sink."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from edgerpn.errors import EngineLoadError
from edgerpn.files import native_path

Provider = str | tuple[str, Mapping[str, Any]]
"""An ONNX Runtime execution provider by name (cuda, CUDAExecutionProvider), alone or with its options."""
CPU = "CPUExecutionProvider"
"""Full name of the provider that is always there."""
_CUDA = "CUDAExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"
_OPTIONS: dict[str, dict[str, str]] = {
    # On by default in ONNX Runtime, and too coarse for a float32 graph to equal its model.
    _CUDA: {"use_tf32": "0"},
    # Its caches are off, because they would be written to the current folder.
    _TENSORRT: {"trt_engine_cache_enable": "0", "trt_timing_cache_enable": "0"},
}
"""Default options of a provider."""
_logger = logging.getLogger(__name__)


def open_session(
    library: ModuleType,
    path: Path,
    providers: Sequence[tuple[str, dict[str, Any]]],
    threads: int,
    *,
    disabled: Sequence[str] = (),
) -> Any:
    """Opens a session of an ONNX file.

    Args:
        library: The module onnxruntime.
        path: Graph.
        providers: As `choose_providers` returns them.
        threads: Threads of one inference on the CPU.
        disabled: Optimizers that stay off.

    Raises:
        EngineLoadError: The library cannot load the file.
    """
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    # Otherwise idle threads of ONNX Runtime spin, and take the cores from decoding and writing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # 3: errors only. `running_provider` checks and logs the provider.
    options.log_severity_level = 3
    try:
        with native_path(path) as native:
            return library.InferenceSession(
                native, options, providers=list(providers), disabled_optimizers=list(disabled)
            )
    except library_failures(library) as error:
        problem = f"{path}: ONNX Runtime {library.__version__} cannot load it"
        if type(error).__name__ == "InvalidProtobuf":
            raise EngineLoadError(
                f"{problem}: it is truncated, damaged, or of another format. Copy it again, or export again."
            ) from error
        raise EngineLoadError(f"{problem}: {error}") from error


def choose_providers(asked: Sequence[Provider] | None, available: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Returns full provider names with options, the CPU last; "cuda" and "CUDAExecutionProvider" mean the same.

    Raises:
        EngineLoadError: This build of the library does not have one.
        TypeError: It is one name instead of a list of names.
    """
    if isinstance(asked, str):
        raise TypeError(f"providers: expected a list of names, such as [{asked!r}], got the text {asked!r}")
    if not asked:
        # TensorRT is not a default, because it builds an engine at every start, which takes minutes.
        return [(name, _as_options(name, None)) for name in (_CUDA, CPU) if name in available]
    by_short_name = {name.lower().removesuffix("executionprovider"): name for name in available}
    chosen: list[tuple[str, dict[str, Any]]] = []
    for item in asked:
        name, options = (item, None) if isinstance(item, str) else item
        full_name = by_short_name.get(name.lower().removesuffix("executionprovider"))
        if full_name is None:
            raise EngineLoadError(
                f"provider {name!r} is not in this build of ONNX Runtime; it has: {', '.join(available)}. "
                "CUDA and TensorRT come with: pip install 'edgerpn[gpu]'"
            )
        chosen.append((full_name, _as_options(full_name, options)))
    return chosen if any(name == CPU for name, _ in chosen) else [*chosen, (CPU, {})]


def _as_options(name: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(_OPTIONS.get(name, {})) if options is None else {key: str(value) for key, value in options.items()}


def preload_libraries(library: ModuleType, chosen: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Loads the CUDA and cuDNN that pip installed, which the loader of shared libraries does not find by itself.

    Without this, ONNX Runtime 1.21 and newer falls back to the CPU (its documentation, CUDA Execution Provider).
    """
    if not hasattr(library, "preload_dlls") or not any(name in (_CUDA, _TENSORRT) for name, _ in chosen):
        return
    # It prints its problems; our standard output may carry data.
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        library.preload_dlls()
    for line in printed.getvalue().splitlines():
        _logger.info("onnxruntime.preload_dlls: %s", line)


def running_provider(
    path: Path, session: Any, chosen: Sequence[tuple[str, dict[str, Any]]], version: str, *, is_asked: bool
) -> str:
    """Returns the first provider of the session, after logging it.

    Raises:
        EngineLoadError: A provider that the caller named is missing.
    """
    started = [str(name) for name in session.get_providers()]
    running = started[0]
    missing = [name for name, _ in chosen if name not in started]
    if not missing:
        order = ", ".join(short_name(name) for name in session.get_providers())
        asked = ", ".join(short_name(name) for name, _ in chosen) if is_asked else "default"
        _logger.info("%s: ONNX Runtime %s runs on %s (providers: %s)", path, version, order, asked)
        return running
    problem = (
        f"{path}: {' and '.join(missing)} could not be started, and ONNX Runtime fell back to {running}: its CUDA, "
        f"cuDNN, TensorRT or driver is missing or does not fit onnxruntime {version}"
    )
    if is_asked:
        raise EngineLoadError(f"{problem}. Install the right versions, or choose {short_name(running).lower()} alone.")
    _logger.warning("%s", problem)
    return running


def short_name(provider: str) -> str:
    """Returns CUDA of CUDAExecutionProvider."""
    return provider.removesuffix("ExecutionProvider")


def library_failures(library: ModuleType) -> tuple[type[Exception], ...]:
    """Returns the exceptions of ONNX Runtime, which have no common base class."""
    state = library.capi.onnxruntime_pybind11_state
    names = (
        "Fail", "InvalidArgument", "NoSuchFile", "NoModel", "EngineError", "RuntimeException", "InvalidProtobuf",
        "ModelLoaded", "NotImplemented", "InvalidGraph", "EPFail", "ModelLoadCanceled", "ModelRequiresCompilation",
    )  # fmt: skip
    found = tuple(getattr(state, name) for name in names if hasattr(state, name))
    return (*found, RuntimeError, ValueError)
