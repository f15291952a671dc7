"""Settings: frozen dataclasses built from defaults < preset or TOML file < `--set KEY=VALUE`.

A settings class is a frozen, keyword-only dataclass of plain fields (bool, int, float, str, Literal, tuples of
these) and of other such classes. A field with the metadata `PATH` is a path, in which ~ and $VARIABLES are expanded
as in a shell when it comes from a file or an override. The text under a field is its documentation: `to_toml` prints
it. An unknown key is an error that suggests the nearest one. An error lists all problems of a source.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import json
import math
import os
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from edgerpn.errors import ConfigError, UsageError
from edgerpn.files import expand_path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Config = TypeVar("Config")

PATH: Mapping[str, Any] = types.MappingProxyType({"expand": expand_path})
"""Metadata of a field that is a path; the function raises ValueError for a text that it cannot expand."""


def load(
    cls: type[Config],
    *,
    files: Sequence[str | os.PathLike[str]] = (),
    overrides: Sequence[str] = (),
    base: Config | None = None,
) -> Config:
    """Builds `cls` from its defaults (or `base`), then each TOML file, then each override.

    Args:
        cls: A settings dataclass.
        files: TOML files, later ones win.
        overrides: Texts "a.b=value"; the value is TOML, and a bare word is a string.
        base: Settings to start from instead of the defaults of `cls`.

    Raises:
        ConfigError: A file cannot be read, a key is unknown, or a value has the wrong type or range.
        UsageError: It is one of the overrides.
    """
    config = base if base is not None else _build(cls, {}, "defaults")
    for file in files:
        config = _build(cls, read_toml(Path(file)), str(file), config)
    if overrides:
        config = _build(cls, _nest(overrides), "command line", config, UsageError)
    return config


def from_dict(cls: type[Config], values: Mapping[str, Any], *, source: str, base: Config | None = None) -> Config:
    """Builds `cls` from nested `values` (as `to_dict` returns them), naming `source` in errors.

    Other values are those of `base`, or the defaults. JSON has null for values that TOML leaves out: a null means the
    same as a missing key where the field does not accept None.

    Raises:
        ConfigError: A key is unknown, or a value has the wrong type or range.
    """
    return _build(cls, values, source, base)


def to_dict(config: Any) -> dict[str, Any]:
    """Returns the nested plain values of a settings object, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_toml(config: Any) -> str:
    """Returns the settings as TOML that `load` reads, each key below a comment with its meaning."""
    lines: list[str] = []
    _toml_table(config, "", lines)
    return "\n".join(lines).strip() + "\n"


def read_toml(path: Path) -> dict[str, Any]:
    """Returns the tables of a TOML file.

    Raises:
        ConfigError: The file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"cannot read settings: {error.strerror}"], source=str(path)) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is an error of Python's int
        raise ConfigError([f"not valid TOML: {error}"], source=str(path)) from error


def _nest(overrides: Sequence[str]) -> dict[str, Any]:
    """Converts "a.b=value" texts to nested tables; the later of two values for one key wins."""
    tables: dict[str, Any] = {}
    problems: list[str] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        path = key.strip()
        if not equals or not path:
            problems.append(f"expected KEY=VALUE, got {override!r}")
        elif not _put(tables, path.split("."), _toml_value(text.strip())):
            problems.append(f"{path}: one override sets it to a value, another sets keys below it")
    if problems:
        raise UsageError(problems, source="command line")
    return tables


def _put(tables: dict[str, Any], path: Sequence[str], value: Any) -> bool:
    """Puts `value` into nested `tables`; returns False where a table would replace a value or the reverse."""
    *parents, leaf = path
    table = tables
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            return False
    old = table.get(leaf)
    if isinstance(old, dict) and isinstance(value, dict):
        return all([_put(old, (key,), item) for key, item in value.items()])
    if leaf in table and isinstance(old, dict) != isinstance(value, dict):
        return False
    table[leaf] = value
    return True


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        # A shell removes quotes: `--set model.backbone=resnet18` means the string.
        return text


def _build(
    cls: type[Config],
    values: Mapping[str, Any],
    source: str,
    base: Config | None = None,
    error: type[ConfigError] = ConfigError,
) -> Config:
    problems: list[str] = []
    config = _build_table(cls, values, "", problems, base)
    if problems:
        raise error(problems, source=source)
    return config


def _build_table(cls: type[Any], values: Mapping[str, Any], path: str, problems: list[str], base: Any) -> Any:
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    names = [field.name for field in fields]
    expanders = {field.name: field.metadata["expand"] for field in fields if "expand" in field.metadata}
    found_before = len(problems)
    arguments: dict[str, Any] = {}
    problems.extend(f"{path}{key}: unknown setting{_suggest(key, names)}" for key in values if key not in names)
    for name in names:
        old = getattr(base, name) if base is not None else None
        if name in values and not _is_absent(values[name], hints[name]):
            arguments[name] = _convert(values[name], hints[name], f"{path}{name}", problems, old)
            if expand := expanders.get(name):
                arguments[name] = _expand(expand, arguments[name], f"{path}{name}", problems)
        elif base is not None:
            arguments[name] = old
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    problems.extend(f"{path}{name}: missing" for name in required if name not in arguments)
    if len(problems) > found_before:
        return base
    try:
        return cls(**arguments)
    except ValueError as error:
        problems.append(f"{path}{error}")
    return base


def _expand(expand: Callable[[str], str], value: Any, path: str, problems: list[str]) -> Any:
    try:
        return expand(value) if isinstance(value, str) else value
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return value


def _is_absent(value: Any, hint: Any) -> bool:
    return value is None and type(None) not in typing.get_args(hint)


def _suggest(key: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(names)}"


def _convert(value: Any, hint: Any, path: str, problems: list[str], old: Any) -> Any:
    table = _table_class(hint)
    if table is not None and value is not None:
        if not isinstance(value, Mapping):
            problems.append(f"{path}: expected a table of settings, got {value!r}")
            return old
        return _build_table(table, value, f"{path}.", problems, old)
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and dataclasses.is_dataclass(arguments[0]) and isinstance(value, (list, tuple)):
        return tuple(_convert(item, arguments[0], f"{path}[{i}]", problems, None) for i, item in enumerate(value))
    converted = _convert_plain(value, hint)
    if converted is _WRONG:
        problems.append(f"{path}: expected {_describe(hint)}, got {value!r}")
        return old
    return converted


def _table_class(hint: Any) -> type[Any] | None:
    """Returns the settings class in `hint` (itself, or in `Class | None`), or None."""
    choices = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return next((choice for choice in choices if dataclasses.is_dataclass(choice) and isinstance(choice, type)), None)


_WRONG = object()
_LARGEST = 10**300
"""Larger whole numbers do not fit into a float."""


def _convert_plain(value: Any, hint: Any) -> Any:
    """Converts ints to floats and lists to tuples where `hint` asks for them; `_WRONG` for any other type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value if value in arguments and type(value) in {type(a) for a in arguments} else _WRONG
    if origin in (typing.Union, types.UnionType):
        candidates = (_convert_plain(value, argument) for argument in arguments)
        return next((candidate for candidate in candidates if candidate is not _WRONG), _WRONG)
    if origin is tuple:
        return _convert_tuple(value, arguments)
    if hint is type(None):
        return None if value is None else _WRONG
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < _LARGEST else _WRONG
    if isinstance(value, float) and not math.isfinite(value):
        return _WRONG  # TOML has nan and inf; no setting accepts them
    if isinstance(value, bool) and hint is not bool:
        return _WRONG
    return value if isinstance(value, hint) else _WRONG


def _convert_tuple(value: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(value, (list, tuple)):
        return _WRONG
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        hints: Sequence[Any] = [arguments[0]] * len(value)
    elif len(arguments) == len(value):
        hints = arguments
    else:
        return _WRONG
    items = tuple(_convert_plain(item, hint) for item, hint in zip(value, hints, strict=True))
    return _WRONG if any(item is _WRONG for item in items) else items


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(argument) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in arguments)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"a list, each item {_describe(arguments[0])}"
        return "[" + ", ".join(_describe(argument) for argument in arguments) + "]"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "nothing"}
    return words.get(hint, str(hint))


def _toml_table(config: Any, path: str, lines: list[str]) -> None:
    docs = field_docs(type(config))
    nested = []
    if path:
        lines.append(f"[{path}]")
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            nested.append((field.name, value))
            continue
        lines.extend(f"# {line}" for line in textwrap.wrap(docs.get(field.name, ""), 110))
        lines.append(f"# {field.name} is not set" if value is None else f"{field.name} = {_toml_text(value)}")
    lines.append("")
    for name, value in nested:
        _toml_table(value, f"{path}.{name}" if path else name, lines)


def _toml_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_text(item) for item in value) + "]"
    if isinstance(value, str):
        # TOML has no surrogate pairs and wants DEL escaped; otherwise its strings are JSON's.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if dataclasses.is_dataclass(value):
        items = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return "{" + ", ".join(f"{name} = {_toml_text(item)}" for name, item in items if item is not None) + "}"
    return repr(value)


def field_docs(cls: type[Any]) -> dict[str, str]:
    """Returns the text under each field of a settings class and its bases, by field name, each as one line."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs.update(_own_docs(base))
    return docs


@functools.cache
def _own_docs(cls: type[Any]) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    docs: dict[str, str] = {}
    for node, follower in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(follower, ast.Expr):
            value = follower.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                docs[node.target.id] = " ".join(value.value.split())
    return docs
