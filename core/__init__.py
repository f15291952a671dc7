"""EdgeRPN: class-agnostic object proposals on edge GPUs, from a training folder to a camera.

    import edgerpn

    edgerpn.train.train("photos", "RUN", minutes=10)
    edgerpn.train.evaluate("RUN/best.pt", "photos")
    edgerpn.export.export_onnx("RUN/best.pt", "model.onnx")
    edgerpn.export.build_engine("model.onnx", "model.engine")
    with edgerpn.runtime.load("model.onnx") as model:
        proposals = model(frame)

Everything is imported at first use: the package itself needs NumPy alone, `train` and `export` need torch, and
`runtime` needs OpenCV and an inference backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerpn.lazy import lazy_names

if TYPE_CHECKING:
    from edgerpn import export, runtime, train
    from edgerpn.errors import EdgeRpnError
    from edgerpn.manifest import Manifest
    from edgerpn.proposals import Proposals

__version__ = "0.2.0.dev0"

__all__ = ["EdgeRpnError", "Manifest", "Proposals", "__version__", "export", "runtime", "train"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "EdgeRpnError": "edgerpn.errors",
        "Manifest": "edgerpn.manifest",
        "Proposals": "edgerpn.proposals",
        "export": "edgerpn.export",
        "runtime": "edgerpn.runtime",
        "train": "edgerpn.train",
    },
)
