"""The result of one check of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "problem", "absent"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemCheck:
    """The result of one check."""

    name: str
    """The thing that was checked."""
    verdict: Verdict
    """problem: missing although needed, or installed and broken; absent: missing, and needed for some uses only."""
    found: str
    """The installed version, or the state."""
    advice: str = ""
    """The remedy, or the uses that need it."""
