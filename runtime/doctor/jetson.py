"""Checks of a Jetson and of containers: NumPy under the system's OpenCV, device files, and mounts of a container.

Written from NVIDIA's documentation and users' reports; not run on a Jetson.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from edgerpn import files
from edgerpn.machine import board_model, is_jetson, power_mode
from edgerpn.runtime.doctor.check import SystemCheck

ROOT = Path("/")
_GPU_FILES = (
    "dev/nvmap", "dev/host1x-fence", "dev/nvgpu/*/as", "dev/nvgpu/*/channel", "dev/nvgpu/*/ctrl", "dev/nvgpu/*/power",
    "dev/nvgpu/*/tsg", "dev/dri/renderD*", "dev/nvidia[0-9]*", "dev/nvidiactl",
)  # fmt: skip
"""Device files of the groups video and render. Those for debuggers and schedulers beside them (ctxsw, dbg, prof, sched,
nvsched) are of other groups, and CUDA does not need them (udev rules of Jetson Linux, as snapd has them)."""
_ARGUS_SOCKET = "tmp/argus_socket"
_CONTAINER_MARKS = (".dockerenv", "run/.containerenv")
_FACTS = (
    "-v /proc/device-tree/model:/tmp/nv_jetson_model:ro -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro "
    "-v /etc/nvpmodel.conf:/etc/nvpmodel.conf:ro -v /var/lib/nvpmodel:/var/lib/nvpmodel:ro"
)
_REGISTRY = "rm -r ~/.cache/gstreamer-1.0"


def check_numpy() -> Iterator[SystemCheck]:
    """Names a NumPy 2 that covers the NumPy 1 of the system's OpenCV, before this fails to import."""
    spec = find_spec("cv2")
    if spec is None or spec.origin is None or "dist-packages" not in Path(spec.origin).parts:
        return
    system = _system_numpy()
    if system is None or _major(system) >= 2 or _major(np.__version__) < 2:
        return
    yield SystemCheck(
        name="NumPy",
        verdict="problem",
        found=f"{np.__version__}, but the system's OpenCV ({Path(spec.origin).parent}) is compiled for {system}: "
        "importing cv2 fails with `numpy.core.multiarray failed to import`",
        advice="pip install 'numpy<2' (the extras jetson6 and jetson7 bring it)",
    )


def _system_numpy() -> str | None:
    """Returns the version of NumPy in Debian's folders."""
    folders = [folder for folder in sys.path if "dist-packages" in Path(folder).parts]
    found = [one for one in distributions(path=folders) if (one.metadata["Name"] or "").lower() == "numpy"]
    return found[0].version if found else None


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def check_jetson() -> Iterator[SystemCheck]:
    """Checks of a Jetson, none elsewhere; the caches of a container are checked everywhere."""
    is_container = any((ROOT / mark).exists() for mark in _CONTAINER_MARKS)
    if is_jetson():
        yield _board(is_container=is_container)
        yield _gpu_files()
        if is_container:
            yield _camera_socket()
    if is_container:
        yield from _caches()


def _board(*, is_container: bool) -> SystemCheck:
    board, mode = board_model(), power_mode()
    found = f"{board or 'unknown'}, power mode {mode or 'unknown (nvpmodel -q)'}"
    if (board and mode) or not is_container:
        return SystemCheck(name="board", verdict="ok", found=found)
    return SystemCheck(
        name="board",
        verdict="absent",
        found=found,
        advice=f"engines, timing caches and benchmarks record both: docker run {_FACTS} ...",
    )


def _gpu_files() -> SystemCheck:
    found = sorted(file for pattern in _GPU_FILES for file in ROOT.glob(pattern))
    closed = [str(file) for file in found if not os.access(file, os.R_OK | os.W_OK)]
    if not closed:
        text = f"this user may open all {len(found)}" if found else "none in /dev"
        return SystemCheck(name="GPU device files", verdict="ok" if found else "absent", found=text)
    return SystemCheck(
        name="GPU device files",
        verdict="problem",
        found=f"this user may not open {', '.join(closed[:3])}{', ...' if len(closed) > 3 else ''}",
        advice="sudo usermod -aG video,render USER, then log in again (in a container: --group-add video --group-add "
        '"$(getent group render | cut -d: -f3)", since the number of `render` differs inside); GStreamer has '
        f"blacklisted plugins that failed: {_REGISTRY}",
    )


def _camera_socket() -> SystemCheck:
    is_there = (ROOT / _ARGUS_SOCKET).exists()
    return SystemCheck(
        name="CSI cameras",
        verdict="ok" if is_there else "absent",
        found=f"/{_ARGUS_SOCKET} is {'there' if is_there else 'missing'}",
        advice="" if is_there else f"csi:// cameras need it: docker run -v /{_ARGUS_SOCKET}:/{_ARGUS_SOCKET} ...",
    )


def _caches() -> Iterator[SystemCheck]:
    """Kernels that TensorRT-RTX compiled and TensorRT's kernel timings vanish with a container."""
    folder = files.cache_folder()
    if folder is None:
        return
    # Unlike the methods of Path, these functions take a folder that this user may not enter.
    is_kept = any(os.path.ismount(parent) for parent in (folder, *folder.parents) if parent != parent.parent)
    nearest = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
    if not os.access(nearest, os.W_OK):
        yield SystemCheck(
            name="caches",
            verdict="problem",
            found=f"this user may not write into {nearest}, so compiled kernels are lost",
            advice=f"docker run --user root --entrypoint chown -v edgerpn-cache:{folder} IMAGE {os.getuid()} {folder}, "
            f"then run with -v edgerpn-cache:{folder}",
        )
        return
    yield SystemCheck(
        name="caches",
        verdict="ok" if is_kept else "absent",
        found=f"{folder} {'is on a volume' if is_kept else 'vanishes with the container'}",
        advice="" if is_kept else f"To keep compiled kernels: docker run -v edgerpn-cache:{folder} ...",
    )
