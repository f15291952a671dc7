"""Settings of streams: files, command line, defaults, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from edgerpn.errors import ConfigError, StreamOpenError
from edgerpn.runtime.run import BatchingConfig, SourceConfig, StreamsConfig, load_streams, to_toml
from edgerpn.runtime.run.loading import load_outputs
from edgerpn.runtime.sinks import JsonLinesConfig

FILE = """
min_score = 0.25

[defaults]
max_age_ms = 500
transport = "udp"

[sources.door]
source = "rtsp://user:hunter2@camera/stream"
size_wh = [640, 480]

[sources."yard.2"]
source = "/dev/video0"
transport = "tcp"

[batching]
batch_wait_ms = 4

[[outputs]]
kind = "jsonl"
path = "a.jsonl"

[[outputs]]
kind = "mqtt"
url = "mqtt://user:hunter2@broker/x"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "streams.toml"
    path.write_text(FILE)
    return path


def test_a_file_gives_each_source_its_own_values_after_the_defaults(file: Path) -> None:
    config = load_streams(file)
    door, yard = config.sources
    assert (door.name, yard.name) == ("door", "yard.2")
    assert (door.max_age_ms, yard.max_age_ms) == (500.0, 500.0)
    assert (door.transport, yard.transport) == ("udp", "tcp")
    assert door.size_wh == (640, 480)
    assert config.min_score == 0.25
    assert config.batching == BatchingConfig(batch_wait_ms=4.0)
    outputs = load_outputs(file)
    assert [output.kind for output in outputs] == ["jsonl", "mqtt"]
    assert outputs[0].config == JsonLinesConfig(path="a.jsonl")


def test_overrides_win_over_the_file_and_reach_sources_whose_names_hold_dots(file: Path) -> None:
    overrides = ["sources.yard.2.max_age_ms=10", "defaults.gap_s=0.5", "batching.max_batch=4", "min_score=0"]
    config = load_streams(file, overrides=overrides)
    assert [source.max_age_ms for source in config.sources] == [500.0, 10.0]
    assert [source.gap_s for source in config.sources] == [0.5, 0.5]
    assert (config.batching.max_batch, config.batching.batch_wait_ms, config.min_score) == (4, 4.0, 0.0)


def test_sources_of_the_command_line_are_named_without_passwords(file: Path) -> None:
    config = load_streams(file, sources=["rtsp://u:hunter2@host/x", "a.mp4"])
    assert [source.label for source in config.sources] == ["door", "yard.2", "rtsp://***@host/x", "a.mp4"]
    assert {source.max_age_ms for source in config.sources} == {500.0}
    assert load_streams(sources=["0"]).sources == (SourceConfig(source="0", name="0"),)


def test_printed_settings_hold_no_password_and_explain_each_setting(file: Path) -> None:
    printed = to_toml(load_streams(file), load_outputs(file))
    assert "hunter2" not in printed
    assert '[sources."door"]\n# Camera (number or /dev/videoN)' in printed
    assert '\nsource = "rtsp://***@camera/stream"\n' in printed
    assert '[[outputs]]\nkind = "jsonl"' in printed
    assert "# Seconds without a frame that cause an event" in printed
    assert "# Maximum time that a frame waits for those of other sources" in printed
    assert "sources = []" not in printed


@pytest.mark.parametrize(
    "options", ["headers;Authorization: Basic hunter2", "max_delay;1|Cookies;id=hunter2; path=/", "passphrase;hunter2"]
)
def test_options_of_ffmpeg_that_hold_credentials_are_not_printed(options: str) -> None:
    config = load_streams(sources=["http://host/x"], overrides=[f"defaults.ffmpeg_options={options}"])
    assert config.sources[0].ffmpeg_options == options
    assert 'ffmpeg_options = "***"' in to_toml(config)
    assert "hunter2" not in to_toml(config) + repr(config)


def test_options_of_ffmpeg_without_credentials_are_printed() -> None:
    config = load_streams(sources=["http://host/x"], overrides=["defaults.ffmpeg_options=max_delay;1"])
    assert 'ffmpeg_options = "max_delay;1"' in to_toml(config)


def test_printed_settings_without_passwords_can_be_read_again(tmp_path: Path) -> None:
    config = load_streams(sources=["/dev/video0", "csi://0"], overrides=["defaults.max_age_ms=7", "min_score=0.5"])
    path = tmp_path / "again.toml"
    path.write_text(to_toml(config))
    assert load_streams(path) == config


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[[sources]]\nsource = 'a'", r"sources: expected a table for each source, \[sources.NAME\]"),
        ("[sources.a]\nsource = 'a'\nmax_age = 1", "sources.a: max_age: unknown setting; did you mean 'max_age_ms'"),
        ("[sources.a]\nsource = 'a'\nmax_age_ms = -1", "max_age_ms: expected 0 or more"),
        ("[sources.a]\nmax_age_ms = 1", r"sources.a.source: missing"),
        ("[sources.a]\nsource = 'a'\nname = 'b'", "the table's name is the source's"),
        ("[sources.a]\nsource = 1979-05-27", r"source: expected a text, got datetime\.date"),
        ("[batching]\nmax_batch = 1000", "batching.max_batch: expected 0 to 256"),
        ("[batch]\nmax_batch = 1", "batch: unknown setting; did you mean 'batching'"),
        ("min_score = 2", "min_score: expected 0 to 1"),
        ("defaults = 1", "defaults: expected a table of settings"),
        ("x = ", "not valid TOML"),
    ],
)
def test_wrong_settings_are_named_with_their_place(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem) as caught:
        load_streams(path)
    assert "wrong.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("sources.roof.gap_s=1", "no such source; known: a"),
        ("sources=1", "expected sources.NAME.KEY=value"),
        ("sources.a.gap=1", "gap: unknown setting; did you mean 'gap_s'"),
        ("defaults.policy=newest", "policy"),
    ],
)
def test_wrong_overrides_are_refused(override: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        load_streams(sources=["a"], overrides=[override])


def test_a_source_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a\.mp4: given twice"):
        load_streams(sources=["a.mp4", "a.mp4"])
    one = SourceConfig(source="a.mp4", name="x")
    with pytest.raises(ValueError, match="different names, got 'x' twice"):
        StreamsConfig(sources=(one, one))
    with pytest.raises(StreamOpenError, match="unknown URL scheme"):
        load_streams(sources=["gopher://host/x"])


def test_channels_of_a_recorder_whose_names_hide_the_channel_are_two_sources() -> None:
    one, two = (f"rtsp://10.0.0.5/user=admin_password=x_channel={number}.sdp" for number in (1, 2))
    config = load_streams(sources=[one, two], overrides=["sources.rtsp://10.0.0.5/user=*** #2.max_fps=5"])
    assert [(source.label, source.source, source.max_fps) for source in config.sources] == [
        ("rtsp://10.0.0.5/user=***", one, 0.0), ("rtsp://10.0.0.5/user=*** #2", two, 5.0),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="given twice"):
        load_streams(sources=[one, two, two])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.toml: cannot read settings"):
        load_streams(tmp_path / "no.toml")


def test_files_have_no_limit_of_age() -> None:
    assert SourceConfig(source="a.mp4").age_limit_ms == math.inf
    assert SourceConfig(source="0").age_limit_ms == 2000.0
    assert SourceConfig(source="0", max_age_ms=0.0).age_limit_ms == math.inf


def test_frames_that_wait_for_the_model_have_the_limit_of_age_that_is_set() -> None:
    assert SourceConfig(source="0", policy="every").age_limit_ms == math.inf
    assert SourceConfig(source="0", policy="every", max_age_ms=300.0).age_limit_ms == 300.0


def test_a_capture_process_gets_only_settings_that_it_knows() -> None:
    capture = SourceConfig(source="0", name="x", max_age_ms=5.0, gap_s=0.5).capture
    assert (capture.label, capture.gap_s) == ("x", 0.5)
    assert not hasattr(capture, "max_age_ms")
    assert json.dumps(capture.source) == '"0"'


def test_slots_and_waiting_of_an_engine_are_settings() -> None:
    config = load_streams(sources=["0"], overrides=["engine.num_slots=1", 'engine.gpu_wait="spin"'])
    assert (config.engine.num_slots, config.engine.gpu_wait) == (1, "spin")
    with pytest.raises(ConfigError, match="num_slots: expected 1 to 64, got 0"):
        load_streams(sources=["0"], overrides=["engine.num_slots=0"])
