"""Checks of this machine: capture, decoders, inference libraries, and what to install (`edgerpn doctor`)."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from edgerpn.errors import EngineLoadError, MissingDependencyError
from edgerpn.machine import available_cores, installed_packages, is_jetson, jetson_linux
from edgerpn.runtime.doctor.check import SystemCheck
from edgerpn.runtime.doctor.jetson import check_jetson, check_numpy
from edgerpn.runtime.opencv import has_windows, load_cv2
from edgerpn.runtime.sources.decoders import Abilities, find_abilities
from edgerpn.runtime.sources.spec import plugin_schemes
from edgerpn.targets import LIBRARIES, EngineLibrary

_OPTIONAL = (
    ("paho.mqtt", "MQTT output", "mqtt"),
    ("starlette", "web page and API (--http)", "web"),
)
_SYSTEM_OPENCV = (
    "Use the system's OpenCV (sudo apt install python3-opencv) in a virtual environment made with "
    "--system-site-packages, and uninstall the OpenCV packages of pip from it."
)


def check_system() -> list[SystemCheck]:
    """Checks OpenCV, decoders, cameras and inference libraries by importing them; raises nothing."""
    backends = [_onnxruntime(), *map(_tensorrt, LIBRARIES)]
    # With a wrong NumPy, the import of OpenCV would print pages before this report.
    opencv = list(check_numpy()) or _opencv()
    first = [_machine(), *opencv, _program(), _cameras()]
    return [*first, *backends, *_needed(backends), _gpu(), *check_jetson(), *_optional()]


def _machine() -> SystemCheck:
    words = [f"Python {platform.python_version()}", f"{platform.system()} {platform.machine()}"]
    words.append(f"{available_cores()} cores")
    if release := jetson_linux():
        words.append(f"Jetson Linux {release}")
    return SystemCheck(name="machine", verdict="ok", found=", ".join(words))


def _opencv() -> Iterator[SystemCheck]:
    try:
        cv2 = load_cv2()
    except MissingDependencyError as error:
        yield SystemCheck(name="OpenCV", verdict="problem", found="does not import", advice=str(error))
        return
    packages = sorted(name for name in installed_packages() if name.startswith("opencv-"))
    abilities = find_abilities(cv2)
    parts = (
        ("FFmpeg", abilities.has_ffmpeg),
        ("GStreamer", abilities.has_gstreamer),
        ("Video4Linux", abilities.has_v4l2),
        ("windows", has_windows(cv2)),
    )
    have = ", ".join(name for name, is_there in parts if is_there) or "nothing"
    lack = ", ".join(name for name, is_there in parts if not is_there)
    origin = ", ".join(packages) or "not installed by pip"
    found = f"{cv2.__version__} ({origin}) with {have}{f'; without {lack}' if lack else ''}"
    if len(packages) > 1:
        advice = f"They overwrite each other's files: pip uninstall -y {' '.join(packages)}, then install one of them."
        yield SystemCheck(name="OpenCV", verdict="problem", found=found, advice=advice)
    else:
        yield SystemCheck(name="OpenCV", verdict="ok", found=found)
    yield _gstreamer(abilities)


def _gstreamer(abilities: Abilities) -> SystemCheck:
    if abilities.has_gstreamer:
        hardware = ", and the hardware decoder nvv4l2decoder is installed" if abilities.has_nvv4l2 else ""
        return SystemCheck(name="GStreamer", verdict="ok", found=f"this OpenCV is built with it{hardware}")
    if is_jetson() or abilities.has_nvv4l2:
        found = "this OpenCV is built without it: no csi:// camera and no hardware decoder of this Jetson"
        return SystemCheck(name="GStreamer", verdict="problem", found=found, advice=_SYSTEM_OPENCV)
    advice = f"Only pipelines and csi:// cameras need it. {_SYSTEM_OPENCV}"
    return SystemCheck(name="GStreamer", verdict="absent", found="this OpenCV is built without it", advice=advice)


def _program() -> SystemCheck:
    have = [name for name in ("ffmpeg", "ffprobe") if shutil.which(name)]
    if len(have) == 2:
        return SystemCheck(name="ffmpeg", verdict="ok", found=f"{shutil.which('ffmpeg')}, with ffprobe")
    advice = "For decoder=ffmpeg-process, and for key frames in `edgerpn doctor stream`: sudo apt install ffmpeg"
    return SystemCheck(name="ffmpeg", verdict="absent", found=", ".join(have) or "not installed", advice=advice)


def _cameras() -> SystemCheck:
    devices = sorted(Path("/dev").glob("video*"))
    plugins = [f"{scheme}://" for scheme in plugin_schemes()]
    found = ", ".join([*map(str, devices), *plugins]) or "no /dev/videoN"
    closed = [str(device) for device in devices if not os.access(device, os.R_OK | os.W_OK)]
    if closed:
        advice = "sudo usermod -aG video USER, then log in again (in a container: --device and the group video)"
        return SystemCheck(
            name="cameras", verdict="problem", found=f"this user may not open {', '.join(closed)}", advice=advice
        )
    return SystemCheck(name="cameras", verdict="ok" if devices or plugins else "absent", found=found)


def _onnxruntime() -> SystemCheck:
    packages = sorted(name for name in installed_packages() if re.fullmatch(r"onnxruntime(?:-\w+)*", name))
    try:
        library = importlib.import_module("onnxruntime")
        providers = ", ".join(str(name).removesuffix("ExecutionProvider") for name in library.get_available_providers())
        version = library.__version__
    # A damaged or mixed installation may raise anything.
    except Exception as error:  # noqa: BLE001
        if not packages and isinstance(error, ModuleNotFoundError):
            advice = "To run .onnx files: pip install 'edgerpn[onnxruntime]' (or [gpu])"
            return SystemCheck(name="ONNX Runtime", verdict="absent", found="not installed", advice=advice)
        advice = f"Reinstall it: pip uninstall -y {' '.join(packages)}, then pip install 'edgerpn[onnxruntime]'"
        found = f"{', '.join(packages)}: does not import: {error}"
        return SystemCheck(name="ONNX Runtime", verdict="problem", found=found, advice=advice)
    found = f"{version} with {providers}"
    if len(packages) > 1:
        advice = f"They overwrite each other's files: pip uninstall -y {' '.join(packages)}, then install one of them."
        return SystemCheck(
            name="ONNX Runtime", verdict="problem", found=f"{found} ({', '.join(packages)})", advice=advice
        )
    return SystemCheck(name="ONNX Runtime", verdict="ok", found=found)


def _tensorrt(name: EngineLibrary) -> SystemCheck:
    from edgerpn.runtime.backends.tensorrt.library import import_library

    title = LIBRARIES[name].title
    found, problem = _attempt(lambda: import_library(name, allow_lean=True).title)
    if isinstance(problem, EngineLoadError):
        # The error says what to do.
        return SystemCheck(name=title, verdict="problem", found=str(problem))
    if problem is not None:
        advice = str(problem).partition("Install it with: ")[2]
        return SystemCheck(name=title, verdict="absent", found="not installed", advice=f"To run engines: {advice}")
    return SystemCheck(name=title, verdict="ok", found=found)


def _needed(backends: list[SystemCheck]) -> list[SystemCheck]:
    """Returns a problem when no inference library works."""
    if any(backend.verdict == "ok" for backend in backends):
        return []
    advice = "Install one: pip install 'edgerpn[onnxruntime]', or see [gpu], [tensorrt] and [rtx]."
    return [SystemCheck(name="inference", verdict="problem", found="no working library", advice=advice)]


def _gpu() -> SystemCheck:
    from edgerpn.runtime.backends.tensorrt.cuda_provider import open_device

    def describe() -> str:
        info = open_device().info
        return f"{info.name}, compute capability {info.compute_capability}, driver for CUDA {info.driver_cuda}"

    found, problem = _attempt(describe)
    if problem is not None:
        is_there = is_jetson() or Path("/dev/nvidia0").exists()
        return SystemCheck(name="GPU", verdict="problem" if is_there else "absent", found=str(problem))
    return SystemCheck(name="GPU", verdict="ok", found=found)


def _attempt(get: Callable[[], str]) -> tuple[str, Exception | None]:
    try:
        return get(), None
    except (EngineLoadError, MissingDependencyError) as error:
        return "", error


def _optional() -> Iterator[SystemCheck]:
    for module, purpose, extra in _OPTIONAL:
        is_there = find_spec(module.partition(".")[0]) is not None
        yield SystemCheck(
            name=purpose,
            verdict="ok" if is_there else "absent",
            found=f"{module} is installed" if is_there else f"{module} is not installed",
            advice="" if is_there else f"pip install 'edgerpn[{extra}]'",
        )
