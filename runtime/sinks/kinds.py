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

import functools
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
    "classify": "edgerpn.runtime.sinks.classify:ClassifySink",
    "jsonl": "edgerpn.runtime.sinks.jsonl:JsonLinesSink",
    "mqtt": "edgerpn.runtime.sinks.mqtt:MqttSink",
    "video": "edgerpn.runtime.sinks.video:VideoSegmentsSink",
    "webhook": "edgerpn.runtime.sinks.webhook:WebhookSink",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """One output: its kind and its settings."""

    kind: str
    """Name of the kind: classify, jsonl, mqtt, video, webhook or one of another package."""
    config: OutputConfig
    """Settings of that kind."""
    to: Output | None = None
    """The output that takes the records of this one; None: this one makes no records."""


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
        try:
            outputs.append(_read_output(table, f"outputs[{position}]"))
        except ConfigError as error:  # noqa: PERF203 - the problems of all tables are reported
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems, source=source)
    return tuple(outputs)


def _read_output(table: Any, path: str) -> Output:
    """Reads one table; the problems of a `ConfigError` begin with `path`."""
    if not isinstance(table, Mapping):
        raise ConfigError([f"{path}: expected a table of settings, got a {type(table).__name__}"])
    values = {key: value for key, value in table.items() if key != "kind"}
    try:
        sink_class = _sink_class(table.get("kind"))
        makes_records = getattr(sink_class, "makes_records", False)
        to = values.pop("to", None) if makes_records else None
        config = settings.from_dict(sink_class.config_class, values, source=path)
    except ConfigError as error:
        raise ConfigError([f"{path}.{problem}" for problem in error.problems]) from error
    return Output(kind=table["kind"], config=config, to=_read_taker(to, f"{path}.to") if makes_records else None)


def _read_taker(table: Any, path: str) -> Output:
    """Reads the output that takes the records of another."""
    if table is None:
        raise ConfigError(
            [f'{path}: missing; expected an output, such as {{ kind = "jsonl", path = "classes.jsonl" }}']
        )
    output = _read_output(table, path)
    if not hasattr(_sink_class(output.kind), "write_records"):
        raise ConfigError([f"{path}.kind: expected an output of records (jsonl, mqtt, webhook), got {output.kind!r}"])
    return output


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
        NoThreadError: The system gives no more threads; likewise.
    """
    maker = RecordMaker()
    sinks: list[QueuedSink] = []
    try:
        for output in outputs:
            sinks.append(_open_one(output, is_live=is_live, maker=maker))  # noqa: PERF401 - closed after an error
    except BaseException:
        close_sinks(sinks, timeout_s=1.0)
        raise
    return sinks


def _open_one(output: Output, *, is_live: bool, maker: RecordMaker) -> QueuedSink:
    sink_class = _sink_class(output.kind)
    options: dict[str, Any] = {"is_live": is_live} if getattr(sink_class, "needs_is_live", False) else {}
    if output.to is not None:
        options["open_to"] = functools.partial(_open_one, output.to, is_live=is_live, maker=maker)
    made = sink_class(output.config, **options)
    return QueuedSink(made, output.config, kind=output.kind, is_live=is_live, maker=maker)


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
