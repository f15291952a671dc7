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

from edgerpn.runtime.sinks.contract import NotDeliveredError, Record, RecordSink, SinkStats
from edgerpn.runtime.sinks.jsonl import JsonLinesConfig
from edgerpn.runtime.sinks.mqtt import MqttConfig
from edgerpn.runtime.sinks.open_sinks import Output, known_kinds, open_sinks, read_outputs
from edgerpn.runtime.sinks.sink_queue import STOP_S, OutputConfig, QueuedSink, close_sinks
from edgerpn.runtime.sinks.video import VideoConfig
from edgerpn.runtime.sinks.webhook import WebhookConfig

__all__ = [
    "STOP_S",
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
