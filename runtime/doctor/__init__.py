"""Diagnosis of a camera or of this machine: `edgerpn doctor`."""

from __future__ import annotations

from edgerpn.runtime.doctor.check import SystemCheck
from edgerpn.runtime.doctor.figures import StreamFigures, figures_of
from edgerpn.runtime.doctor.findings import Finding, findings_of, is_healthy
from edgerpn.runtime.doctor.recording import Recording, record
from edgerpn.runtime.doctor.system import check_system

__all__ = [
    "Finding",
    "Recording",
    "StreamFigures",
    "SystemCheck",
    "check_system",
    "figures_of",
    "findings_of",
    "is_healthy",
    "record",
]
