"""Many streams through one model, for days: settings, batches, freshness, statistics.

from edgerpn.runtime import load
from edgerpn.runtime.frame import Result
from edgerpn.runtime.streams import SourceConfig, StreamRunner, StreamsConfig

sources = (SourceConfig(source="rtsp://user:password@camera/stream", name="door", max_age_ms=300),)
with load("model.onnx") as model, StreamRunner(model, StreamsConfig(sources=sources)) as runner:
    for item in runner:
        if isinstance(item, Result):
            print(item.frame.source, item.age_ms, len(item.proposals))
        else:
            print(item.kind, item.message)
"""

from __future__ import annotations

from edgerpn.runtime.streams.config import BatchingConfig, SourceConfig, StreamsConfig
from edgerpn.runtime.streams.loading import load_streams, to_toml
from edgerpn.runtime.streams.runner import StreamRunner
from edgerpn.runtime.streams.stats import SourceStats

__all__ = [
    "BatchingConfig",
    "SourceConfig",
    "SourceStats",
    "StreamRunner",
    "StreamsConfig",
    "load_streams",
    "to_toml",
]
