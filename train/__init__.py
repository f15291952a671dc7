"""Training: data, the Region Proposal Network, its losses, the loop and its evaluation (torch).

    from edgerpn.train import evaluate, train

    result = train("photos", "run", minutes=30)
    print(evaluate(result.best, "photos").metrics["AR@100"])

The names are imported at first use, so that `import edgerpn.train` itself does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerpn.lazy import lazy_names

if TYPE_CHECKING:
    from edgerpn.train.config import TrainSettings, load_settings
    from edgerpn.train.evaluation import evaluate
    from edgerpn.train.recall.measurement import Evaluation
    from edgerpn.train.training import TrainResult, train

__all__ = ["Evaluation", "TrainResult", "TrainSettings", "evaluate", "load_settings", "train"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Evaluation": "edgerpn.train.recall.measurement",
        "TrainResult": "edgerpn.train.training",
        "TrainSettings": "edgerpn.train.config",
        "evaluate": "edgerpn.train.evaluation",
        "load_settings": "edgerpn.train.config",
        "train": "edgerpn.train.training",
    },
)
