"""Export: checkpoint to ONNX to engine, with the proof that they agree (torch, onnx).

    from edgerpn.export import build_engine, export_onnx

    export_onnx("RUN/best.pt", "model.onnx", data="DIR")
    build_engine("model.onnx", "model.engine")

The names are imported at first use, so that `import edgerpn.export` itself costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerpn.lazy import lazy_names

if TYPE_CHECKING:
    from edgerpn.export.class_vectors import write_class_vectors
    from edgerpn.export.engine.build import build_engine
    from edgerpn.export.engine.options import BuildConfig
    from edgerpn.export.export_config import ExportConfig
    from edgerpn.export.onnx.export import export_onnx
    from edgerpn.export.prediction.config import PredictConfig
    from edgerpn.export.prediction.predict import PredictSummary, predict

__all__ = [
    "BuildConfig",
    "ExportConfig",
    "PredictConfig",
    "PredictSummary",
    "build_engine",
    "export_onnx",
    "predict",
    "write_class_vectors",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "BuildConfig": "edgerpn.export.engine.options",
        "ExportConfig": "edgerpn.export.export_config",
        "PredictConfig": "edgerpn.export.prediction.config",
        "PredictSummary": "edgerpn.export.prediction.predict",
        "build_engine": "edgerpn.export.engine.build",
        "export_onnx": "edgerpn.export.onnx.export",
        "predict": "edgerpn.export.prediction.predict",
        "write_class_vectors": "edgerpn.export.class_vectors",
    },
)
