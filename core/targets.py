"""The libraries that run a graph: one table of their versions, limits and capabilities.

A new version of TensorRT is a row of `TARGETS` where its limits differ from those of the row before, an entry in
`TargetName`, and a line in `tests/core/test_targets.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ExportTarget = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
"""Library that an export is made for, whatever its version."""

EngineLibrary = Literal["tensorrt", "tensorrt-rtx"]
"""Library that builds and runs engines."""

TargetName = Literal["tensorrt-10.3", "tensorrt-10.8", "tensorrt-11", "tensorrt-11.5", "tensorrt-rtx", "onnxruntime"]
"""Library and the first version that has these limits."""

EXPORT_TARGETS: tuple[ExportTarget, ...] = ("onnxruntime", "tensorrt", "tensorrt-rtx")

TOPK_LIMIT = 3840
"""Largest K of TopK in TensorRT 10.3 to 11.1 (NvInfer.h, ITopKLayer; NVIDIA/TensorRT#4390) and in TensorRT-RTX 1.7."""

HARDWARE_COMPATIBLE_FROM = 80
"""Compute capability, times 10, from which TensorRT runs hardware-compatible engines (Ampere)."""

RTX_DEFAULT_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
"""Compute capabilities that TensorRT-RTX builds for by default, beside later ones (its documentation, CPU-Only AOT)."""

RTX_CAPABILITIES = (*RTX_DEFAULT_CAPABILITIES, "12.1")
"""Compute capabilities that an engine of TensorRT-RTX can be built for by name (1.7.1), without 7.5.

On 7.5 it returns zeros for float32 products of dynamic size (pytorch/TensorRT pull 4643), which our graphs contain.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LibraryInfo:
    """One of NVIDIA's libraries as a Python package."""

    title: str
    """Its name for people."""
    module: str
    """Its Python module; packages of pip have this name too, with or without -cuNN."""
    extra: str
    """Extra of edgerpn that installs it."""
    oldest: tuple[int, int]
    """Oldest version whose Python interface has what a build uses."""
    lacks: Mapping[str, str] = field(default_factory=dict)
    """Settings of a build that it does not have, and the reason."""


LIBRARIES: dict[EngineLibrary, LibraryInfo] = {
    "tensorrt": LibraryInfo(
        title="TensorRT",
        module="tensorrt",
        extra="tensorrt",
        oldest=(10, 3),
        lacks={
            "compute_capabilities": "TensorRT builds for the GPU of this machine; leave it out or use tensorrt-rtx",
        },
    ),
    "tensorrt-rtx": LibraryInfo(
        title="TensorRT-RTX",
        module="tensorrt_rtx",
        extra="rtx",
        oldest=(1, 4),
        lacks={
            "version_compatible": "a TensorRT-RTX engine runs only with the version that built it",
            "hardware_compatible": "name the GPUs with compute_capabilities instead",
            "timing_cache": "TensorRT-RTX does not time kernels while it builds",
            "dla_core": "TensorRT-RTX does not support DLA",
        },
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Limits of one library from one version on."""

    name: TargetName
    """Its name on the command line."""
    library: EngineLibrary | None = None
    """NVIDIA's library; None for ONNX Runtime."""
    since: tuple[int, int] = (0, 0)
    """First version with these limits."""
    min_opset: int
    """Oldest operator set that it reads."""
    max_opset: int | None = None
    """Newest operator set that it reads; None: unknown."""
    sure_opset: int | None = None
    """Newest operator set that every release of it is known to read; None: the installed library decides."""
    sure_ir: int | None = None
    """Newest ONNX file version that every release of it is known to read; None: the installed library decides."""

    @property
    def is_tensorrt(self) -> bool:
        """Whether it is one of NVIDIA's compilers."""
        return self.library is not None

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT-RTX, which has neither plugins nor operators whose output varies in size."""
        return self.library == "tensorrt-rtx"


TARGETS: dict[TargetName, Target] = {
    row.name: row
    for row in (
        Target(
            name="tensorrt-10.3", library="tensorrt", since=(10, 3),
            min_opset=9, max_opset=20, sure_opset=20, sure_ir=10,
        ),
        Target(name="tensorrt-10.8", library="tensorrt", since=(10, 8), min_opset=9, sure_opset=20, sure_ir=10),
        Target(
            name="tensorrt-11", library="tensorrt", since=(11, 0), min_opset=9, max_opset=25, sure_opset=24, sure_ir=13
        ),
        Target(
            name="tensorrt-11.5", library="tensorrt", since=(11, 5),
            min_opset=9, max_opset=25, sure_opset=25, sure_ir=13,
        ),
        Target(name="tensorrt-rtx", library="tensorrt-rtx", since=(1, 4), min_opset=9, sure_opset=25, sure_ir=15),
        Target(name="onnxruntime", min_opset=7),
    )
}  # fmt: skip
"""Every target, versions of one library in rising order.

Sources: TensorRT 10.0 to 10.7, opset 9 to 20 (onnx/onnx-tensorrt docs/operators.md at 10.0; NVIDIA/TensorRT#4336, where
the operators of opset 21 fail in 10.7); 10.15 reads 24 (the same file). TensorRT 11, opset 9 to 25
(docs.nvidia.com/deeplearning/tensorrt/latest/reference/onnx-opset-guide.html), but opset 25 is new in 11.5 (its release
notes). File versions: those of the ONNX releases that the parsers are built with (10.3: between 1.14 of 9.0 and 1.17 of
10.6; 11: 1.20; 11.5: 1.22), by the table in `onnx.helper`. TensorRT-RTX 1.7.1: opsets 18 to 25 compiled and file
versions 4 to 15 parsed, by trial; it does not refuse newer opsets. ONNX Runtime: opset 7 and up (its compatibility
page).
"""


def oldest_target(target: ExportTarget) -> TargetName:
    """Returns the target that a graph must satisfy: one for `tensorrt` must run in the oldest version (JetPack 6)."""
    if target == "onnxruntime":
        return target
    return next(row.name for row in TARGETS.values() if row.library == target)


def target_of(library: EngineLibrary, version: str) -> TargetName:
    """Returns the target of an installed version of a library; the oldest one for a version before all of them."""
    rows = [row for row in TARGETS.values() if row.library == library]
    fitting = [row for row in rows if row.since <= version_numbers(version)]
    return (fitting or rows[:1])[-1].name


def version_numbers(version: str) -> tuple[int, ...]:
    """Returns at most the first four numbers of a version: (10, 3, 0, 26) of "10.3.0.26"."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:4])


def capability_number(capability: str) -> int:
    """Returns a compute capability times 10: 87 of "8.7"."""
    major, _, minor = capability.partition(".")
    return int(major) * 10 + int(minor or 0)


def is_same_version(built: str, here: str) -> bool:
    """Returns whether two versions agree in every number that both have; at least three."""
    first, second = version_numbers(built), version_numbers(here)
    shared = min(len(first), len(second))
    return shared >= 3 and first[:shared] == second[:shared]


def runs_compatible_engine(built: str, here: str) -> bool:
    """Returns whether version `here` of TensorRT runs a version-compatible engine of version `built`.

    Source: TensorRT's support matrix: newer versions of the same major version, and the next major version.
    """
    first, second = version_numbers(built), version_numbers(here)
    return second >= first[: len(second)] and second[0] - first[0] in ((0, 1, 2) if first[0] == 8 else (0, 1))
