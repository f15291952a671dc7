"""Settings of a run from TOML and from the command line.

    min_score = 0.3

    [defaults]                        # for every source, overridden by its own table
    max_age_ms = 500

    [sources.door]
    source = "rtsp://user:password@camera/stream"

    [batching]
    batch_wait_ms = 4

    [[outputs]]                       # see `edgerpn.runtime.sinks`
    kind = "jsonl"
    path = "proposals.jsonl"

`--set` takes the same paths: `--set sources.door.max_age_ms=300`, `--set defaults.transport=udp`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgerpn import settings
from edgerpn.errors import ConfigError, UsageError
from edgerpn.runtime.redaction import redact, redact_ffmpeg_options, redact_url
from edgerpn.runtime.run.streams_config import SourceConfig, StreamsConfig
from edgerpn.runtime.sinks import Output, read_outputs

_DEFAULTS, _SOURCES, _OUTPUTS = "defaults", "sources", "outputs"
# `[defaults]` has no source; every source replaces this one.
_PLACE_HOLDER = "0"


def load_streams(
    file: str | os.PathLike[str] | None = None, *, sources: Sequence[str] = (), overrides: Sequence[str] = ()
) -> StreamsConfig:
    """Builds the settings of a run: defaults < file < overrides, for each source after `[defaults]`.

    Args:
        file: TOML file as above.
        sources: Further sources as a user types them, added to those of the file under names of their own.
        overrides: Texts "a.b=value", with `sources.NAME.` and `defaults.` too.

    Raises:
        ConfigError: A file cannot be read, a key is unknown, or a value has the wrong type or range.
        StreamOpenError: The text of a source is not one.
    """
    tables = settings.read_toml(Path(file)) if file is not None else {}
    where = str(file) if file is not None else "settings"
    tables.pop(_OUTPUTS, None)
    named = _source_tables(tables.pop(_SOURCES, {}), where)
    for source in sources:
        named.setdefault(_free_name(source, named), {})["source"] = source
    plain, of_defaults, of_sources = _split(overrides, named)
    defaults = _source(SourceConfig(source=_PLACE_HOLDER), tables.pop(_DEFAULTS, {}), f"{where}: {_DEFAULTS}")
    defaults = settings.load(SourceConfig, base=defaults, overrides=of_defaults)
    built = []
    for name, table in named.items():
        if "source" not in table and not any(text.startswith("source=") for text in of_sources[name]):
            raise ConfigError([f"{_SOURCES}.{name}.source: missing"], source=where)
        base = dataclasses.replace(defaults, name=name)
        one = _source(base, table, f"{where}: {_SOURCES}.{name}")
        built.append(settings.load(SourceConfig, base=one, overrides=of_sources[name]))
    config = settings.from_dict(StreamsConfig, tables, source=where)
    config = settings.load(StreamsConfig, base=config, overrides=plain)
    try:
        return dataclasses.replace(config, sources=tuple(built))
    except ValueError as error:
        raise ConfigError([str(error)], source=where) from error


def load_source(
    file: str | os.PathLike[str] | None, table: Mapping[str, Any], *, overrides: Sequence[str] = ()
) -> SourceConfig:
    """Returns the settings of one more source: `[defaults]` of a file < `defaults.` of the overrides < its table.

    Raises:
        ConfigError: The file cannot be read, or a value is wrong.
        StreamOpenError: The text of the source is not one.
    """
    defaults = settings.read_toml(Path(file)).get(_DEFAULTS, {}) if file is not None else {}
    base = _source(SourceConfig(source=_PLACE_HOLDER), defaults, f"{file}: {_DEFAULTS}")
    _, of_defaults, _ = _split([text for text in overrides if text.startswith(f"{_DEFAULTS}.")], {})
    return _source(settings.load(SourceConfig, base=base, overrides=of_defaults), table, "source")


def load_outputs(file: str | os.PathLike[str] | None) -> tuple[Output, ...]:
    """Returns the outputs of a settings file; none without a file.

    Raises:
        ConfigError: The file cannot be read, or a table is wrong.
    """
    if file is None:
        return ()
    tables = settings.read_toml(Path(file)).get(_OUTPUTS, [])
    if not isinstance(tables, list):
        raise ConfigError([f"{_OUTPUTS}: expected tables [[{_OUTPUTS}]]"], source=str(file))
    return read_outputs(tables, source=str(file))


def to_toml(config: StreamsConfig, outputs: Sequence[Output] = ()) -> str:
    """Returns the settings as TOML text for people; passwords in it are hidden."""
    plain = settings.to_toml(dataclasses.replace(config, sources=()))
    # `settings` does not know tables with names, as those of sources.
    parts = ["".join(re.split(r"(?:^# .*\n)?^sources = \[\]\n", plain, flags=re.MULTILINE))]
    for source in config.sources:
        options = redact_ffmpeg_options(source.ffmpeg_options)
        body = settings.to_toml(dataclasses.replace(source, source=source.spec.shown, ffmpeg_options=options))
        parts.append(f"[{_SOURCES}.{json.dumps(source.label)}]\n{body}")
    parts += [_output_toml(output, f"[[{_OUTPUTS}]]") for output in outputs]
    return "\n".join(parts)


def _output_toml(output: Output, header: str) -> str:
    url = getattr(output.config, "url", None)
    config_shown = output.config if url is None else _replaced(output.config, url=redact_url(url))
    text = f'{header}\nkind = "{output.kind}"\n{settings.to_toml(config_shown)}'
    return text if output.to is None else f"{text}\n{_output_toml(output.to, f'[{_OUTPUTS}.to]')}"


def _replaced(config: Any, **values: Any) -> Any:
    """Returns a copy without the checks, which would refuse a hidden password."""
    copied = copy.copy(config)
    for name, value in values.items():
        object.__setattr__(copied, name, value)
    return copied


def _source_tables(value: Any, where: str) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(table, dict) for table in value.values()):
        problem = f"{_SOURCES}: expected a table for each source, [{_SOURCES}.NAME], got {value!r}"
        raise ConfigError([redact(problem)], source=where)
    for name, table in value.items():
        if table.get("name", name) != name:
            raise ConfigError([f"{_SOURCES}.{name}.name: the table's name is the source's"], source=where)
    return {name: dict(table) for name, table in value.items()}


def _free_name(source: str, named: Mapping[str, Any]) -> str:
    """Returns the name of a source from the command line; the same source twice is an error.

    Sources that differ only in a part that names do not show, as the channels of a recorder may, are NAME, NAME #2 ...
    """
    name = label = SourceConfig(source=source).label
    number = 1
    while name in named:
        if named[name].get("source") == source:
            raise UsageError([f"{label}: given twice"], source="sources")
        number += 1
        name = f"{label} #{number}"
    return name


def _source(base: SourceConfig, table: Any, where: str) -> SourceConfig:
    """Returns `base` with the values of a TOML table."""
    if not isinstance(table, dict):
        raise ConfigError([f"expected a table of settings, got {table!r}"], source=where)
    return settings.from_dict(SourceConfig, table, source=where, base=base)


def _split(overrides: Sequence[str], named: Mapping[str, Any]) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """Splits overrides into those of the run, the defaults and each source; the longest name that fits wins."""
    plain: list[str] = []
    of_defaults: list[str] = []
    of_sources: dict[str, list[str]] = {name: [] for name in named}
    for text in overrides:
        if text.startswith(f"{_DEFAULTS}."):
            of_defaults.append(text.removeprefix(f"{_DEFAULTS}."))
        elif text.startswith(f"{_SOURCES}."):
            rest = text.removeprefix(f"{_SOURCES}.")
            fitting = [name for name in named if rest.startswith(f"{name}.")]
            if not fitting:
                known = ", ".join(named) or "none"
                raise UsageError([f"{redact(text)}: no such source; known: {known}"], source="--set")
            name = max(fitting, key=len)
            of_sources[name].append(rest.removeprefix(f"{name}."))
        elif text.partition("=")[0].strip() in (_DEFAULTS, _SOURCES):
            raise UsageError([f"expected {_SOURCES}.NAME.KEY=value or {_DEFAULTS}.KEY=value"], source="--set")
        else:
            plain.append(text)
    return plain, of_defaults, of_sources
