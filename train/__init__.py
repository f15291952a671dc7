"""Training: data, the Region Proposal Network, its losses, the loop and its evaluation (torch).

    from edgerpn.train import evaluate, train

    result = train("photos", "run", minutes=30)
    print(evaluate(result.best, "photos").metrics["AR@100"])

The names are imported at first use, so that `import edgerpn.train` itself does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgerpn.train.config import TrainSettings, load_settings
    from edgerpn.train.evaluation import Evaluation, evaluate
    from edgerpn.train.training import TrainResult, train

__all__ = ["Evaluation", "TrainResult", "TrainSettings", "evaluate", "load_settings", "train"]

_HOMES = {
    "Evaluation": "edgerpn.train.evaluation",
    "TrainResult": "edgerpn.train.training",
    "TrainSettings": "edgerpn.train.config",
    "evaluate": "edgerpn.train.evaluation",
    "load_settings": "edgerpn.train.config",
    "train": "edgerpn.train.training",
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
