"""Bulk: millions of pictures through an exported model, on many machines (pyarrow, fsspec, Ray; never torch or onnx).

    from edgerpn.batch import Proposer

    proposer = Proposer("model.onnx", threads=2)
    table = proposer({"path": ["a.jpg", "b.jpg"]})

The names are imported at first use, so that `import edgerpn.batch` itself costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerpn.lazy import lazy_names

if TYPE_CHECKING:
    from edgerpn.batch.config import BulkConfig
    from edgerpn.batch.proposer import Proposer
    from edgerpn.batch.run import BulkSummary, bulk

__all__ = ["BulkConfig", "BulkSummary", "Proposer", "bulk"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "BulkConfig": "edgerpn.batch.config",
        "BulkSummary": "edgerpn.batch.run",
        "Proposer": "edgerpn.batch.proposer",
        "bulk": "edgerpn.batch.run",
    },
)
