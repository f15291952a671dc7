"""The device runtime: frames in, proposals out (NumPy, OpenCV and an inference backend; never torch or onnx).

    from edgerpn.runtime import load

    with load("model.onnx") as model:
        proposals = model(frame)
        for result in model.stream("video.mp4"):
            print(result.index, len(result.proposals))

The names are imported at first use, so that `import edgerpn.runtime` itself costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgerpn.proposals import Proposals
    from edgerpn.runtime.frame import Result
    from edgerpn.runtime.model import Model, load

__all__ = ["Model", "Proposals", "Result", "load"]

_HOMES = {
    "Model": "edgerpn.runtime.model",
    "Proposals": "edgerpn.proposals",
    "Result": "edgerpn.runtime.frame",
    "load": "edgerpn.runtime.model",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
