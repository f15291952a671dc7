"""Export: checkpoint to ONNX to engine, with the proof that they agree (torch, onnx).

    from edgerpn.export import build_engine, export_onnx

    export_onnx("RUN/best.pt", "model.onnx", data="DIR")
    build_engine("model.onnx", "model.engine")

The names are imported at first use, so that `import edgerpn.export` itself costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgerpn.export.engine.build import build_engine
    from edgerpn.export.engine.build_config import BuildConfig
    from edgerpn.export.export_config import ExportConfig
    from edgerpn.export.onnx.export import ExportResult, export_onnx

__all__ = ["BuildConfig", "ExportConfig", "ExportResult", "build_engine", "export_onnx"]

_HOMES = {
    "BuildConfig": "edgerpn.export.engine.build_config",
    "ExportConfig": "edgerpn.export.export_config",
    "ExportResult": "edgerpn.export.onnx.export",
    "build_engine": "edgerpn.export.engine.build",
    "export_onnx": "edgerpn.export.onnx.export",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
