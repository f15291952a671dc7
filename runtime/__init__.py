"""The device runtime: frames in, proposals out (NumPy, OpenCV and an inference backend; never torch or onnx).

    from edgerpn.runtime import load

    with load("model.onnx") as model:
        proposals = model(frame)
        for result in model.stream("video.mp4"):
            print(result.index, len(result.proposals))

The names are imported at first use, so that `import edgerpn.runtime` itself costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerpn.lazy import lazy_names

if TYPE_CHECKING:
    from edgerpn.proposals import Proposals
    from edgerpn.runtime.backends.contract import EngineConfig
    from edgerpn.runtime.backends.served.config import ServerConfig
    from edgerpn.runtime.frame import Result
    from edgerpn.runtime.model import Model, load

__all__ = ["EngineConfig", "Model", "Proposals", "Result", "ServerConfig", "load"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "EngineConfig": "edgerpn.runtime.backends.contract",
        "Model": "edgerpn.runtime.model",
        "Proposals": "edgerpn.proposals",
        "Result": "edgerpn.runtime.frame",
        "ServerConfig": "edgerpn.runtime.backends.served.config",
        "load": "edgerpn.runtime.model",
    },
)
