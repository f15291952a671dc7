"""Imports TensorRT, TensorRT-RTX or the lean runtime of TensorRT, and diagnoses what does not work.

The runner relies on features common to TensorRT 10.3 to 11 and TensorRT-RTX 1.7, and detects
others with hasattr. TensorRT-RTX 1.7.1 has been run (without a GPU); of TensorRT, the Python bindings have been read.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import re
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Any

from edgerpn.errors import EngineLoadError, MissingDependencyError
from edgerpn.targets import LIBRARIES, EngineLibrary

_logger = logging.getLogger(__name__)

_MOST_WARNINGS = 50
"""Different warnings of one library that are shown."""
_ADVICE = (
    (
        "libnvdla_compiler",
        "This build of TensorRT needs the Jetson's DLA library from the host: use the container image made for this "
        "JetPack, or install nvidia-l4t-dla-compiler.",
    ),
    (r"libcuda\.so", "The NVIDIA driver is missing: install it, or start a container with --gpus all."),
    (r"libcudart|libcublas|libcudnn|libnvrtc", "Install the CUDA version that this TensorRT was made for."),
    ("libnvinfer|libtensorrt", "Its own libraries are missing or of another version: install all of it again."),
    ("GLIBC", "It was made for a newer Linux: install a version made for this one."),
)
"""Patterns of the messages of the loader of shared libraries, and advice."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TensorRtLibrary:
    """An imported library."""

    name: EngineLibrary
    """Its name; the lean runtime counts as tensorrt."""
    module: Any
    """The Python module: tensorrt, tensorrt_lean or tensorrt_rtx."""

    @property
    def version(self) -> str:
        """Full version, such as 10.3.0.26 (some packages leave the last number out)."""
        return str(self.module.__version__)

    @property
    def title(self) -> str:
        """Name and version for people."""
        return f"{LIBRARIES[self.name].title} {self.version}{' (lean runtime)' if self.is_lean else ''}"

    @property
    def is_lean(self) -> bool:
        """True if it is the lean runtime, which runs version-compatible engines only."""
        return str(self.module.__name__) == "tensorrt_lean"


def import_library(
    name: EngineLibrary, *, purpose: str = "running this engine", allow_lean: bool = False
) -> TensorRtLibrary:
    """Imports a library.

    Args:
        name: Its name.
        purpose: Start of the sentence that names the missing package.
        allow_lean: Whether to take TensorRT's lean runtime when TensorRT itself is not installed.

    Raises:
        MissingDependencyError: It is not installed.
        EngineLoadError: It is installed, but does not work here.
    """
    modules = [LIBRARIES[name].module, *(["tensorrt_lean"] if allow_lean and name == "tensorrt" else [])]
    for module in modules:
        try:
            return TensorRtLibrary(name=name, module=importlib.import_module(module))
        except ModuleNotFoundError as error:  # noqa: PERF203 - two names at most
            if error.name != module:
                raise EngineLoadError(_diagnosis(module, error)) from error
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            # ctypes raises OSError for a missing library; packages wrap it in various errors.
            raise EngineLoadError(_diagnosis(module, error)) from error
    jetson = (
        "; on a Jetson, TensorRT comes with JetPack: make the virtual environment with "
        "python3 -m venv --system-site-packages"
    )
    lean = " (or [lean], for version-compatible engines)" if len(modules) > 1 else ""
    raise MissingDependencyError(
        f"{purpose} needs the Python package {' or '.join(modules)}, which is not installed here. Install it with: "
        f"pip install 'edgerpn[{LIBRARIES[name].extra}]'{lean}{jetson if name == 'tensorrt' else ''}"
    )


def _diagnosis(module: str, error: Exception) -> str:
    advice = [text for pattern, text in _ADVICE if re.search(pattern, str(error))]
    return f"{module} is installed, but does not work here: {error}. {' '.join(advice[:1])}".rstrip()


def make_runtime(module: Any) -> Any:
    """Makes the runtime object of a library's module, with the logger of `logger_of`.

    Raises:
        EngineLoadError: The library cannot start, as with a driver that is too old for it. TensorRT then returns
            nothing, which is a TypeError of its bindings, or an object all the same, whose first use ends the process,
            and so does its end (lean runtime 11.4.0).
    """
    log = logger_of(module)
    log.take_lines()  # those of other engines do not concern this start
    try:
        runtime = module.Runtime(log)
    except TypeError as error:
        raise _cannot_start(module, log) from error
    if log.lines:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(runtime))  # so that it never ends
        raise _cannot_start(module, log)
    return runtime


def _cannot_start(module: Any, log: Any) -> EngineLoadError:
    return EngineLoadError(
        f"{module.__name__} {module.__version__} cannot start: {log.take_lines()}. Update the NVIDIA driver, or "
        "install the library that is made for the driver's CUDA version."
    )


@cache
def logger_of(module: Any) -> Any:
    """Returns the logger for all objects of a library in this process.

    TensorRT keeps the logger of the first object, and sends it the lines of later ones. The logger keeps errors for
    `take_lines`, logs each warning once, and all other lines at the level DEBUG.

    Calls that hold Python's global lock, such as `set_input_shape`, hang if they wait for a thread of the library that
    logs. Those that take long release it: building, loading, `create_execution_context`, `execute_async_v3` (by the
    source of the bindings of TensorRT 10; not seen).
    """

    class Log(module.ILogger):  # type: ignore[misc]
        """Called by the library from any thread."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.lines: deque[str] = deque(maxlen=20)
            self.num_errors = 0
            self.warned: set[str] = set()

        def log(self, severity: Any, message: str) -> None:
            """Handles a line; must not raise, because the library calls it from C++."""
            is_serious = severity in (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR)
            if is_serious:
                self.lines.append(message.strip())
                self.num_errors += 1
            is_new = severity == module.ILogger.WARNING and message not in self.warned
            if is_new and len(self.warned) < _MOST_WARNINGS:
                self.warned.add(message)
                _logger.warning("%s: %s", module.__name__, message.strip())
            else:
                _logger.debug("%s: %s", module.__name__, message)

        def take_lines(self) -> str:
            """Returns the errors since the last call, for the end of a message."""
            lines, self.lines = self.lines, deque(maxlen=20)
            return "; ".join(dict.fromkeys(lines)) or "it gave no reason"

    return Log()
