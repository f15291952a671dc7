"""Outputs that cannot delay a run: each sink has its own bounded queue and thread, and counts lost items.

from edgerpn.runtime.sinks import close_sinks, open_sinks, read_outputs

tables = [{"kind": "jsonl", "path": "out/proposals.jsonl", "rotate_mb": 100.0}, {"kind": "mqtt", "url": "mqtt://broker"}]
sinks = open_sinks(read_outputs(tables, source="example"), is_live=True)
try:
    for result in model.stream("rtsp://camera/stream"):
        for sink in sinks:
            sink.write(result)
finally:
    close_sinks(sinks)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerpn.lazy import lazy_names
from edgerpn.runtime.sinks.contract import NotDeliveredError, Record, RecordSink, SinkStats
from edgerpn.runtime.sinks.kinds import Output, known_kinds, open_sinks, read_outputs
from edgerpn.runtime.sinks.sink_queue import STOP_S, OutputConfig, QueuedSink, close_sinks

if TYPE_CHECKING:
    from edgerpn.runtime.sinks.classify import ClassifyConfig
    from edgerpn.runtime.sinks.jsonl import JsonLinesConfig
    from edgerpn.runtime.sinks.mqtt import MqttConfig
    from edgerpn.runtime.sinks.video import VideoConfig
    from edgerpn.runtime.sinks.webhook import WebhookConfig

__all__ = [
    "STOP_S",
    "ClassifyConfig",
    "JsonLinesConfig",
    "MqttConfig",
    "NotDeliveredError",
    "Output",
    "OutputConfig",
    "QueuedSink",
    "Record",
    "RecordSink",
    "SinkStats",
    "VideoConfig",
    "WebhookConfig",
    "close_sinks",
    "known_kinds",
    "open_sinks",
    "read_outputs",
]

# The kinds of sinks are imported at first use: most runs use one or two.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ClassifyConfig": "edgerpn.runtime.sinks.classify",
        "JsonLinesConfig": "edgerpn.runtime.sinks.jsonl",
        "MqttConfig": "edgerpn.runtime.sinks.mqtt",
        "VideoConfig": "edgerpn.runtime.sinks.video",
        "WebhookConfig": "edgerpn.runtime.sinks.webhook",
    },
)
