"""Opens sinks by their settings, also sinks of other packages.

In a TOML file each output is a table:

    [[outputs]]
    kind = "mqtt"
    url = "mqtt://door:secret@broker.local/site1"
    queue = 5000

A package adds a kind by an entry point:

    [project.entry-points."edgerpn.sinks"]
    bell = "doorbell.sink:BellSink"

where `BellSink(config)` is a `RecordSink` or a `Sink`, and `BellSink.config_class` a settings class derived from
`OutputConfig` (frozen, keyword-only, with slots).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from edgerpn import settings
from edgerpn.errors import ConfigError, SinkError
from edgerpn.runtime.sinks.contract import RecordMaker
from edgerpn.runtime.sinks.sink_queue import OutputConfig, QueuedSink, close_sinks

GROUP = "edgerpn.sinks"
"""Group of the entry points."""

# To add a sink: one module in this folder, with its settings as `config_class`, and one line here.
_KINDS = {
    "jsonl": "edgerpn.runtime.sinks.jsonl:JsonLinesSink",
    "mqtt": "edgerpn.runtime.sinks.mqtt:MqttSink",
    "video": "edgerpn.runtime.sinks.video:VideoSegmentsSink",
    "webhook": "edgerpn.runtime.sinks.webhook:WebhookSink",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """One output: its kind and its settings."""

    kind: str
    """Name of the kind: jsonl, mqtt, video, webhook or one of another package."""
    config: OutputConfig
    """Settings of that kind."""


def known_kinds() -> list[str]:
    """Lists the kinds of outputs, also of other packages, in alphabetical order."""
    return sorted({*_KINDS, *(point.name for point in entry_points(group=GROUP))})


def read_outputs(tables: Sequence[Any], *, source: str) -> tuple[Output, ...]:
    """Reads outputs from tables of settings, each with its `kind`.

    Args:
        tables: The tables [[outputs]] of a TOML file.
        source: Name of that file, for errors.

    Raises:
        ConfigError: Names all problems of all tables.
    """
    problems: list[str] = []
    outputs: list[Output] = []
    for position, table in enumerate(tables):
        path = f"outputs[{position}]"
        if not isinstance(table, Mapping):
            problems.append(f"{path}: expected a table of settings, got a {type(table).__name__}")
            continue
        values = {key: value for key, value in table.items() if key != "kind"}
        try:
            config_class = _sink_class(table.get("kind")).config_class
            outputs.append(Output(kind=table["kind"], config=settings.from_dict(config_class, values, source=path)))
        except ConfigError as error:
            problems.extend(f"{path}.{problem}" for problem in error.problems)
    if problems:
        raise ConfigError(problems, source=source)
    return tuple(outputs)


def open_sinks(outputs: Sequence[Output], *, is_live: bool) -> list[QueuedSink]:
    """Opens every output behind its own queue and thread; close them with `close_sinks`.

    Args:
        outputs: What to open.
        is_live: Whether any source is live: a full queue then drops its oldest items instead of making the run wait,
            and failures do not end the run, unless the settings say otherwise.

    Raises:
        ConfigError: A kind is unknown.
        SinkError: An output cannot be opened; those opened before are closed.
        MissingDependencyError: An output needs a package that is not installed.
    """
    maker = RecordMaker()
    sinks: list[QueuedSink] = []
    try:
        for output in outputs:
            made = _make(output, is_live=is_live)
            sinks.append(QueuedSink(made, output.config, kind=output.kind, is_live=is_live, maker=maker))
    except BaseException:
        close_sinks(sinks, timeout_s=1.0)
        raise
    return sinks


def _make(output: Output, *, is_live: bool) -> Any:
    sink_class = _sink_class(output.kind)
    options = {"is_live": is_live} if getattr(sink_class, "needs_is_live", False) else {}
    return sink_class(output.config, **options)


def _sink_class(kind: object) -> Any:
    """Imports the class of a kind.

    Raises:
        ConfigError: The kind is unknown.
        SinkError: It cannot be imported.
    """
    if isinstance(kind, str) and kind in _KINDS:
        module, _, name = _KINDS[kind].partition(":")
        return getattr(importlib.import_module(module), name)
    points = list(entry_points(group=GROUP, name=kind)) if isinstance(kind, str) else []
    if not points:
        raise ConfigError([f"kind: expected one of {', '.join(known_kinds())}, got {kind!r}"])
    try:
        found = points[0].load()
    except (ImportError, AttributeError) as error:
        raise SinkError(f"output {kind}: {points[0].value} of another package does not import: {error}") from error
    config_class = getattr(found, "config_class", None)
    if not (isinstance(config_class, type) and issubclass(config_class, OutputConfig)):
        raise SinkError(f"output {kind}: {points[0].value}: expected a config_class derived from OutputConfig")
    return found
