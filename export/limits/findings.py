"""A violation: one place where a graph asks for more than a target can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
