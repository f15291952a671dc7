"""The environment of a build: the library, TensorRT or TensorRT-RTX, and the machine.

Used in the child process of a build only, because importing such a library can end a process. A failed import becomes
an error that names the cause and the remedy.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerpn.errors import BuildError, EngineLoadError, MissingDependencyError
from edgerpn.export.engine.options import Backend
from edgerpn.machine import JETSON_RELEASE, board_model, power_mode
from edgerpn.runtime.backends.tensorrt.compatibility import this_platform
from edgerpn.runtime.backends.tensorrt.cuda import format_cuda_version
from edgerpn.runtime.backends.tensorrt.library import import_library
from edgerpn.targets import LIBRARIES, EngineLibrary, version_numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildMachine:
    """Facts about the computer that a build needs."""

    platform: str
    """Operating system and processor, such as linux-x86_64."""
    gpu: str | None = None
    """Name of the first GPU; None without one."""
    compute_capability: str | None = None
    """Its compute capability, such as 8.7."""
    multiprocessors: int | None = None
    """Its number of multiprocessors."""
    board: str | None = None
    """Name of the board, such as NVIDIA Jetson Orin Nano Developer Kit."""
    power_mode: str | None = None
    """Power mode of a Jetson, such as 2 MAXN_SUPER."""
    driver: str | None = None
    """CUDA version that the driver supports, such as 13.0."""
    gpu_free_mib: int | None = None
    """Free memory of the GPU, MiB."""
    l4t: str | None = None
    """Jetson Linux release, such as 36.4.3."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildEnvironment:
    """The library that builds, and the machine."""

    library: EngineLibrary
    """Name of the library."""
    version: str
    """Its version."""
    cuda: str | None
    """CUDA version that it was made for."""
    machine: BuildMachine
    """The machine."""
    notes: tuple[str, ...] = ()
    """Lines for people, such as the reason for not using another library."""


def choose(backend: Backend, machine: BuildMachine) -> tuple[EngineLibrary, Any, list[str]]:
    """Chooses the library to build with: the named one, or TensorRT where it works and there is a GPU, or TensorRT-RTX.

    Returns:
        Its name, its module, and the reasons for not using the other library.

    Raises:
        BuildError: It is installed and does not work.
        MissingDependencyError: It is not installed.
    """
    if backend != "auto":
        return backend, load_library(backend), []
    notes: list[str] = []
    if machine.gpu is not None:
        try:
            return "tensorrt", load_library("tensorrt"), notes
        except (BuildError, MissingDependencyError) as error:
            notes.append(f"TensorRT-RTX is used instead of TensorRT: {error}")
    elif importlib.util.find_spec("tensorrt") is not None:
        notes.append(
            "TensorRT-RTX is used instead of TensorRT, which builds on a GPU: there is no NVIDIA GPU or driver here"
        )
    try:
        return "tensorrt-rtx", load_library("tensorrt-rtx"), notes
    except (BuildError, MissingDependencyError) as error:
        raise type(error)("\n".join((str(error), *notes))) from error


def load_library(name: EngineLibrary) -> Any:
    """Imports a library that can build.

    Raises:
        BuildError: It is installed and does not import, or it is too old.
        MissingDependencyError: It is not installed.
    """
    info = LIBRARIES[name]
    try:
        module = import_library(name, purpose="building an engine").module
    except EngineLoadError as error:
        raise BuildError(str(error)) from error
    version = str(getattr(module, "__version__", ""))
    if not hasattr(module, "Builder") or not version:
        raise BuildError(
            f"{info.module}: imported from {getattr(module, '__file__', 'nowhere')}, but it has no builder, as in a "
            "lean or half-installed package; install the whole library"
        )
    if version_numbers(version) < info.oldest:
        oldest = ".".join(map(str, info.oldest))
        raise BuildError(f"{info.module} {version} is too old: expected {oldest} or newer; install a newer one")
    return module


def cuda_version(name: EngineLibrary) -> str | None:
    """CUDA version that the library was made for, else that of the system's toolkit; None when neither is known."""
    for distribution in importlib.metadata.distributions():
        found = re.match(
            rf"{LIBRARIES[name].module}[-_]cu(\d+)", (distribution.metadata["Name"] or "").replace("-", "_")
        )
        if found:
            return found[1]
    try:
        values = json.loads(Path("/usr/local/cuda/version.json").read_text(encoding="utf-8"))
        return str(values["cuda"]["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def query_build_machine() -> BuildMachine:
    """Queries the system and the CUDA driver; all fields of the GPU are None without a driver or a GPU."""
    return BuildMachine(
        platform=this_platform(), l4t=_l4t(), board=board_model(), power_mode=power_mode(), **_query_driver()
    )


def _l4t(file: Path = JETSON_RELEASE) -> str | None:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else None


def _query_driver() -> dict[str, Any]:
    """Reads facts about the first GPU from the CUDA driver's library, which needs no Python package.

    Calls and attribute numbers: CUDA driver API, cuda.h (16 are the multiprocessors, 75 and 76 the compute capability).
    Not tried on a GPU by the tests, which run without one.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return {}
    number, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    facts: dict[str, Any] = {}
    if cuda.cuDriverGetVersion(ctypes.byref(number)) == 0 and number.value:
        facts["driver"] = format_cuda_version(number.value)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(number)) or number.value == 0:
        return facts
    device = ctypes.c_int()
    if cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceGetName(name, len(name), device):
        return facts
    values = []
    for attribute in (75, 76, 16):
        cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        values.append(number.value)
    return {
        **facts,
        "gpu": name.value.decode(errors="replace"),
        "compute_capability": f"{values[0]}.{values[1]}",
        "multiprocessors": values[2],
        "gpu_free_mib": _gpu_free_mib(cuda, device),
    }


def _gpu_free_mib(cuda: Any, device: ctypes.c_int) -> int | None:
    """Free memory of a GPU, which the driver reports only inside a context."""
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    if cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):
        return None
    try:
        if cuda.cuCtxSetCurrent(context) or cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)):
            return None
        return free.value >> 20
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(device)
