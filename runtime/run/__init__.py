"""One runner for files, images and cameras: settings, batches, freshness, statistics.

from edgerpn.runtime import load
from edgerpn.runtime.frame import Result
from edgerpn.runtime.run import SourceConfig, StreamRunner, StreamsConfig

sources = (SourceConfig(source="rtsp://user:password@camera/stream", name="door", max_age_ms=300),)
with load("model.onnx") as model, StreamRunner(model, StreamsConfig(sources=sources)) as runner:
    for item in runner:
        if isinstance(item, Result):
            print(item.frame.source, item.age_ms, len(item.proposals))
        else:
            print(item.kind, item.message)
"""

from __future__ import annotations

from edgerpn.runtime.run.loading import load_streams, to_toml
from edgerpn.runtime.run.runner import StreamRunner
from edgerpn.runtime.run.stats import RunSummary, SourceStats
from edgerpn.runtime.run.streams_config import BatchingConfig, SourceConfig, StreamsConfig

__all__ = [
    "BatchingConfig",
    "RunSummary",
    "SourceConfig",
    "SourceStats",
    "StreamRunner",
    "StreamsConfig",
    "load_streams",
    "to_toml",
]
