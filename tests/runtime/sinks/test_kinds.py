"""Outputs from settings, those of other packages included."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgerpn import settings
from edgerpn.errors import ConfigError, MissingDependencyError, SinkError
from edgerpn.runtime.frame import Result
from edgerpn.runtime.sinks import (
    ClassifyConfig,
    JsonLinesConfig,
    MqttConfig,
    VideoConfig,
    WebhookConfig,
    close_sinks,
    known_kinds,
    open_sinks,
    read_outputs,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MakeResult = Callable[..., Result]

_PLUGIN = '''
from dataclasses import dataclass
from pathlib import Path
from edgerpn.runtime.sinks import OutputConfig

@dataclass(frozen=True, kw_only=True, slots=True)
class BellConfig(OutputConfig):
    path: str
    """File with one line for each ring."""
    min_score: float = 0.5
    """Score from which a proposal rings."""

class BellSink:
    config_class = BellConfig

    def __init__(self, config):
        self.target = config.path
        self._config = config

    def write(self, result):
        if (result.proposals.scores >= self._config.min_score).any():
            with open(self.target, "a") as file:
                file.write(f"ding {result.frame.source} {result.index} {int(result.image[0, 0, 0])}\\n")

    def event(self, event):
        Path(self.target + ".events").write_text(event.kind)

    def close(self):
        pass

class NotASink:
    pass
'''


@pytest.fixture
def doorbell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with sinks of its own, as pip would install it."""
    site = tmp_path / "site"
    info = site / "doorbell-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "doorbell.py").write_text(_PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: doorbell\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[edgerpn.sinks]\nbell = doorbell:BellSink\nbroken = doorbell:Nothing\nwrong = doorbell:NotASink\n"
        "jsonl = doorbell:BellSink\n"
    )
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    yield
    sys.modules.pop("doorbell", None)


def test_a_toml_file_holds_every_kind(tmp_path: Path) -> None:
    text = """
    [[outputs]]
    kind = "jsonl"
    path = "out/proposals.jsonl"
    rotate_mb = 100
    [[outputs]]
    kind = "mqtt"
    url = "mqtts://cam:secret@broker/site"
    qos = 0
    policy = "block"
    [[outputs]]
    kind = "webhook"
    url = "https://example.org/hook"
    batch_s = 0.5
    [[outputs]]
    kind = "video"
    folder = "clips"
    minutes = 5
    queue = 4
    """
    outputs = read_outputs(tomllib.loads(text)["outputs"], source="streams.toml")
    assert [type(output.config) for output in outputs] == [JsonLinesConfig, MqttConfig, WebhookConfig, VideoConfig]
    assert outputs[0].config == JsonLinesConfig(path="out/proposals.jsonl", rotate_mb=100.0)
    assert outputs[1].config.policy == "block"
    assert "secret" not in repr(outputs)
    assert known_kinds() == ["classify", "jsonl", "mqtt", "video", "webhook"]


def test_every_setting_is_documented() -> None:
    for cls in (ClassifyConfig, JsonLinesConfig, MqttConfig, WebhookConfig, VideoConfig):
        documented = {name for base in cls.__mro__[:2] for name in settings.field_docs(base)}
        assert documented == set(cls.__dataclass_fields__)


def test_all_problems_of_all_outputs_are_reported_at_once() -> None:
    tables: list[Any] = [
        {"kind": "jsonl"},
        {"kind": "jsnl", "path": "a"},
        {"path": "a"},
        {"kind": "mqtt", "url": "mqtt://user:secret@", "qoss": 1},
        {"kind": "mqtt", "url": "mqtt://user:secret@host/a/#"},
        {"kind": "mqtt", "url": "mqtt://host", "qos": 2, "queue": -1},
        {"kind": "video", "folder": "a", "minutes": 0},
        "mqtt://host",
        {"kind": "jsonl", "path": "-", "rotate_mb": 1},
    ]
    with pytest.raises(ConfigError) as caught:
        read_outputs(tables, source="streams.toml")
    text = str(caught.value)
    for words in (
        "streams.toml: outputs[0].path: missing",
        "outputs[1].kind: expected one of classify, jsonl, mqtt, video, webhook, got 'jsnl'",
        "outputs[2].kind: expected one of classify, jsonl, mqtt, video, webhook, got None",
        "outputs[3].qoss: unknown setting; did you mean 'qos'?",
        "outputs[4].url: expected a topic without + # ? behind the host, got 'mqtt://***@host/a/#'",
        "outputs[5].qos: expected one of 0, 1, got 2",
        "outputs[6].minutes: expected more than 0, got 0.0",
        "outputs[7]: expected a table of settings, got a str",
        "outputs[8].path: expected a file, because of rotate_mb",
    ):
        assert words in text
    assert "secret" not in text


@pytest.mark.usefixtures("doorbell")
def test_another_package_adds_a_sink(make_result: MakeResult, make_event: Any, tmp_path: Path) -> None:
    assert known_kinds() == ["bell", "broken", "classify", "jsonl", "mqtt", "video", "webhook", "wrong"]
    target = tmp_path / "rings.txt"
    outputs = read_outputs([{"kind": "bell", "path": str(target), "min_score": 0.8}], source="test")
    sinks = open_sinks(outputs, is_live=True)
    sinks[0].write(make_result(3, level=77))
    sinks[0].event(make_event("ended"))
    close_sinks(sinks)
    assert target.read_text() == "ding door 3 77\n"
    assert Path(f"{target}.events").read_text() == "ended"
    assert sinks[0].stats().name == f"bell {target}"
    with pytest.raises(ConfigError, match="did you mean 'min_score'"):
        read_outputs([{"kind": "bell", "path": "a", "min_scor": 1}], source="test")


@pytest.mark.usefixtures("doorbell")
def test_a_package_that_does_not_fit_is_distinguished_from_a_wrong_kind() -> None:
    with pytest.raises(SinkError, match="output broken: doorbell:Nothing of another package does not import"):
        read_outputs([{"kind": "broken"}], source="test")
    with pytest.raises(SinkError, match="output wrong: doorbell:NotASink: expected a config_class"):
        read_outputs([{"kind": "wrong"}], source="test")
    (output,) = read_outputs([{"kind": "jsonl", "path": "a"}], source="test")
    assert type(output.config) is JsonLinesConfig


def test_one_run_fills_several_outputs_with_equal_records(make_result: MakeResult, tmp_path: Path) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    tables: list[dict[str, Any]] = [{"kind": "jsonl", "path": str(path)} for path in paths]
    tables.append({"kind": "video", "folder": str(tmp_path / "clips"), "suffix": ".avi", "min_free_mb": 0})
    sinks = open_sinks(read_outputs(tables, source="test"), is_live=False)
    for index in range(30):
        result = make_result(index, media_time_s=index / 10)
        for sink in sinks:
            sink.write(result)
    close_sinks(sinks)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert [json.loads(line)["frame"] for line in paths[0].read_text().splitlines()] == list(range(30))
    assert [path.name for path in (tmp_path / "clips").iterdir()] == ["door-20231114T221320.000Z.avi"]
    assert [sink.stats().written for sink in sinks] == [30, 30, 30]


def test_an_output_that_does_not_open_closes_those_before_it(tmp_path: Path) -> None:
    tables = [{"kind": "jsonl", "path": str(tmp_path / "a.jsonl")}, {"kind": "jsonl", "path": str(tmp_path)}]
    with pytest.raises(SinkError, match="Is a directory"):
        open_sinks(read_outputs(tables, source="test"), is_live=True)


def test_without_paho_mqtt_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    outputs = read_outputs([{"kind": "mqtt", "url": "mqtt://host"}], source="test")
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgerpn\[mqtt\]'"):
        open_sinks(outputs, is_live=True)
