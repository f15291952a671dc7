"""What a check of a graph finds, and what each target can do: the contract between `limits` and its rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Target = Literal["tensorrt-10.3", "tensorrt-11", "tensorrt-rtx", "onnxruntime"]
"""What is to run the graph. `tensorrt-10.3` is the oldest one (JetPack 6): what it takes, all later ones take."""

TARGETS: tuple[Target, ...] = ("tensorrt-10.3", "tensorrt-11", "tensorrt-rtx", "onnxruntime")

Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Violation:
    """One place where a graph asks for more than a target can do."""

    severity: Severity
    """error: it will not compile, load or run there, or gives other numbers; warning: it will, at a price."""
    rule: str
    """Name of the rule."""
    node: str
    """Operator and name of the node, name of the tensor, or `file`."""
    level: int | None = None
    """Number of the pyramid level, finest first from 0, when the node belongs to one."""
    found: str
    """What is in the graph."""
    limit: str
    """What the target can do."""
    fix: str
    """What to change."""

    def text(self) -> str:
        """The violation on three lines, for people."""
        level = "" if self.level is None else f", level {self.level}"
        return (
            f"{self.severity}: {self.rule}: {self.node}{level}: {self.found}\n"
            f"    limit: {self.limit}\n    fix:   {self.fix}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The numbers of one target; the rules hold the rest."""

    target: Target
    """Its name."""
    min_opset: int
    """Oldest operator set that it reads."""
    max_opset: int | None
    """Newest operator set that it reads; not set: the library is asked."""
    sure_opset: int | None
    """Newest operator set that every release of it is known to read."""
    sure_ir: int | None
    """Newest ONNX file version that every release of it is known to read."""

    @property
    def is_tensorrt(self) -> bool:
        """Whether it is one of NVIDIA's compilers."""
        return self.target != "onnxruntime"

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT-RTX, which has no plugins."""
        return self.target == "tensorrt-rtx"


LIMITS: dict[Target, Limits] = {
    "tensorrt-10.3": Limits(target="tensorrt-10.3", min_opset=9, max_opset=20, sure_opset=20, sure_ir=10),
    "tensorrt-11": Limits(target="tensorrt-11", min_opset=9, max_opset=25, sure_opset=24, sure_ir=13),
    "tensorrt-rtx": Limits(target="tensorrt-rtx", min_opset=9, max_opset=None, sure_opset=25, sure_ir=15),
    "onnxruntime": Limits(target="onnxruntime", min_opset=7, max_opset=None, sure_opset=None, sure_ir=None),
}
"""Operator sets and file versions.

Sources: TensorRT 10.0 to 10.7, opset 9 to 20 (onnx/onnx-tensorrt docs/operators.md at 10.0; NVIDIA/TensorRT#4336, where
the operators of opset 21 fail in 10.7). TensorRT 11, opset 9 to 25 (docs.nvidia.com/deeplearning/tensorrt/latest/
reference/onnx-opset-guide.html), but opset 25 is new in 11.5 (its release notes) and 24 the last of 10.15. File
versions: those of the ONNX releases that the parsers are built with (10.3: between 1.14 of 9.0 and 1.17 of 10.6;
11: 1.20), by the table in `onnx.helper`. TensorRT-RTX 1.7.1: opsets 18 to 25 compiled and file versions 4 to 15 parsed,
by trial; it does not refuse newer opsets. ONNX Runtime: opset 7 and up (its compatibility page); the installed library
is asked for the newest.
"""
