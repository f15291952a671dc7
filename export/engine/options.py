"""Settings of an engine build, and the tries that follow when memory runs out."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Literal

from edgerpn.errors import check_setting
from edgerpn.settings import PATH
from edgerpn.targets import LIBRARIES, EngineLibrary

Backend = Literal["auto", EngineLibrary]

BACKENDS: tuple[Backend, ...] = ("auto", *LIBRARIES)
DEFAULT_BATCH = (1, 1, 8)
DEFAULT_STALL_S = 120.0
MAX_TRIES = 4
"""Builds that are tried at most when memory runs out."""
SMALL_WORKSPACE_MIB = 1024
"""First limit that is tried after the library's own choice ran out of memory, MiB."""
LEAST_WORKSPACE_MIB = 64
"""Smallest limit that is tried, MiB; TensorRT-RTX refuses the portable NMS of 1000 boxes with 1 MiB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildConfig:
    """Library, target and options of an engine build."""

    backend: Backend = "auto"
    """Library; `auto`: TensorRT where it imports and sees a GPU, else TensorRT-RTX."""
    compute_capabilities: tuple[str, ...] = ()
    """tensorrt-rtx: GPUs to build for, such as 8.6; empty: the library's choice (8.0, 8.6, 8.9, 12.0 and later)."""
    batch: tuple[int, int, int] | None = None
    """Smallest batch, the one to tune for, and the largest, for a graph with a dynamic batch; not set: 1, 1, 8."""
    workspace_mib: int | None = None
    """Limit of the builder's workspace, MiB; not set: the library's default (all of the GPU's memory)."""
    optimization_level: int | None = None
    """0 (fastest build) to 5 (longest search); not set: the library's default, 3."""
    timing_cache: str | None = field(default=None, metadata=PATH)
    """tensorrt: file of kernel timings, or `off`; not set: a shared one in the user's cache folder."""
    version_compatible: bool = False
    """tensorrt: whether newer versions of the library may run the engine."""
    hardware_compatible: bool = False
    """tensorrt: whether every GPU since Ampere may run the engine; not for Jetson."""
    dla_core: int | None = None
    """tensorrt, experimental: DLA core to build for; the GPU runs the layers that it cannot. Needs a fixed batch, fp16
    or int8."""
    tf32: bool = False
    """True if float32 convolutions may round to TF32."""
    profile: bool = False
    """True if the time of each layer is measured after the build; needs a GPU."""
    stall_s: float = DEFAULT_STALL_S
    """Seconds without progress and without CPU time after which the watchdog kills a builder; 0: never."""

    def __post_init__(self) -> None:
        smallest, tuned, largest = self.batch or DEFAULT_BATCH
        check_setting(1 <= smallest <= tuned <= largest, "batch", "1 <= MIN <= OPT <= MAX", self.batch)
        check_setting(
            self.workspace_mib is None or self.workspace_mib >= 1, "workspace_mib", "at least 1", self.workspace_mib
        )
        check_setting(
            self.optimization_level is None or 0 <= self.optimization_level <= 5,
            "optimization_level",
            "0 to 5",
            self.optimization_level,
        )
        check_setting(self.dla_core is None or self.dla_core >= 0, "dla_core", "0 or more", self.dla_core)
        check_setting(0 <= self.stall_s < math.inf, "stall_s", "0 or more", self.stall_s)
        for capability in self.compute_capabilities:
            check_setting(
                bool(re.fullmatch(r"\d{1,2}\.\d", capability)),
                "compute_capabilities",
                "texts such as '8.6'",
                capability,
            )

    def problems(self, library: EngineLibrary) -> list[str]:
        """Lists the settings that `library` does not have, a line for each."""
        lacks = LIBRARIES[library].lacks
        given = {name: getattr(self, name) for name in lacks}
        # By identity: the DLA core 0 equals False.
        asked = [name for name, value in given.items() if value not in (None, "off", ()) and value is not False]
        problems = [f"{name}: {lacks[name]}" for name in asked]
        if library == "tensorrt-rtx" and "7.5" in self.compute_capabilities:
            problems.append(
                "compute_capabilities: on 7.5, TensorRT-RTX returns zeros for products of our graphs; build for 8.0 "
                "and later, and run the ONNX file with CUDA on such a GPU"
            )
        return problems

    def attempts(self) -> list[BuildConfig]:
        """This configuration and those to try after it, in order, when memory runs out."""
        level = 3 if self.optimization_level is None else self.optimization_level
        asked = self.workspace_mib
        first = SMALL_WORKSPACE_MIB if asked is None else min(asked, max(LEAST_WORKSPACE_MIB, asked // 2))
        smaller = min(first, max(LEAST_WORKSPACE_MIB, first // 4))
        steps = [
            self,
            dataclasses.replace(self, workspace_mib=first),
            dataclasses.replace(self, workspace_mib=smaller, optimization_level=min(level, 2)),
            dataclasses.replace(self, workspace_mib=smaller, optimization_level=0),
        ]
        return list(dict.fromkeys(steps))[:MAX_TRIES]

    def describe(self) -> str:
        """Workspace and optimization level as text."""
        workspace = (
            "the default workspace" if self.workspace_mib is None else f"a workspace of {self.workspace_mib} MiB"
        )
        level = "the default" if self.optimization_level is None else str(self.optimization_level)
        return f"{workspace}, optimization level {level}"
