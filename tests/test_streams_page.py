"""The page on streams: its examples run, and its lists are complete."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import numpy as np
import pytest

from edgerpn.models import find_model
from edgerpn.proposals import Proposals
from edgerpn.runtime.frame import EventKind, Frame, Reason, Result
from edgerpn.runtime.run import SourceConfig, load_streams
from edgerpn.runtime.run.loading import load_outputs
from edgerpn.runtime.run.streams_config import StreamsConfig
from edgerpn.runtime.sinks import (
    ClassifyConfig,
    JsonLinesConfig,
    MqttConfig,
    OutputConfig,
    VideoConfig,
    WebhookConfig,
    close_sinks,
    open_sinks,
)
from edgerpn.runtime.sinks.record import record_schema
from edgerpn.runtime.sources import CaptureConfig, open_capture

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "streams.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


@pytest.fixture
def package(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package of the page, as pip would install it."""
    site = tmp_path / "site"
    info = site / "doorbell-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: doorbell\nVersion: 1.0\n")
    (project,) = [text for text in blocks(page, "toml") if "entry-points" in text]
    groups = tomllib.loads(project)["project"]["entry-points"]
    lines = [f"[{group}]\n" + "\n".join(f"{a} = {b}" for a, b in points.items()) for group, points in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for text in blocks(page, "python"):
        name = text.splitlines()[0].removeprefix("# ")
        (site / name).write_text(text)
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    yield
    for name in ("doorbell", "streetmodels"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("package")
def test_every_settings_file_on_the_page_is_read(page: str, tmp_path: Path) -> None:
    texts = [text for text in blocks(page, "toml") if "entry-points" not in text]
    assert len(texts) >= 4
    for text in texts:
        file = tmp_path / "streams.toml"
        file.write_text(text)
        assert load_streams(file) != StreamsConfig() or load_outputs(file)


@pytest.mark.usefixtures("package")
def test_the_sink_on_the_page_rings(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (text,) = [text for text in blocks(page, "toml") if 'kind = "bell"' in text]
    Path("streams.toml").write_text(text)
    sinks = open_sinks(load_outputs("streams.toml"), is_live=True)
    for index, score in enumerate((0.9, 0.2)):
        proposals = Proposals(np.array([[0, 0, 5, 5]], np.float32), np.array([score], np.float32))
        frame = Frame(
            image=np.zeros((4, 6, 3), np.uint8), index=index, media_time_s=None, captured_at=0.0, monotonic_s=0.0,
            source="door", decode_ms=0.0,
        )  # fmt: skip
        stages = dict.fromkeys(("decode", "preprocess", "inference", "postprocess"), 0.0)
        sinks[0].write(Result(proposals=proposals, frame=frame, stage_ms=stages))
    close_sinks(sinks)
    assert Path("rings.txt").read_text() == "door 0 (4, 6, 3)\n"


@pytest.mark.usefixtures("package")
def test_the_model_on_the_page_has_a_name(tmp_path: Path) -> None:
    file = tmp_path / "site" / "street.onnx"
    file.touch()
    assert find_model("street") == file


@pytest.mark.usefixtures("package")
def test_the_source_on_the_page_gives_frames(page: str, tmp_path: Path) -> None:
    (text,) = [text for text in blocks(page, "toml") if "rain://" in text]
    (tmp_path / "streams.toml").write_text(text)
    (source,) = load_streams(tmp_path / "streams.toml").sources
    with open_capture(source.capture) as capture:
        while not isinstance(item := capture.take(60.0), Frame):
            assert item is not None, capture.messages
    assert item.image.shape == (480, 640, 3)
    assert item.source == "weather"
    assert item.media_time_s is not None
    with open_capture(CaptureConfig(source="rain://roof?fps=0")) as capture:
        while getattr(item := capture.take(60.0), "kind", "") != "error":
            assert item is not None, capture.messages
    assert getattr(item, "reason", "") == "unsupported"


def test_the_records_on_the_page_are_what_the_schema_says(page: str) -> None:
    validator = jsonschema.Draft202012Validator(record_schema())
    # Others show a part of a record.
    records = [record for text in blocks(page, "json") if "type" in (record := json.loads(text))]
    assert {record["type"] for record in records} == {"frame", "event", "classes"}
    for record in records:
        validator.validate(record)


def test_every_event_reason_and_setting_is_named(page: str) -> None:
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    words = set(re.findall(r"`([^`]+)`", prose))
    reasons = set(record_schema()["$defs"]["event"]["properties"]["reason"]["enum"])
    assert reasons == {*get_args(Reason), "age", "removed"}
    names: set[Any] = reasons | set(get_args(EventKind))
    configs = (SourceConfig, OutputConfig, ClassifyConfig, JsonLinesConfig, MqttConfig, WebhookConfig, VideoConfig)
    names |= {field.name for config in configs for field in dataclasses.fields(config)}
    assert names - words - {"source"} == set()
