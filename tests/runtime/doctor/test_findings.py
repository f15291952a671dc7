"""Figures of recorded times, and findings of figures, without a camera."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from edgerpn.runtime.doctor.clock import ClockSkew
from edgerpn.runtime.doctor.figures import StreamFigures, figures_of
from edgerpn.runtime.doctor.findings import findings_of, is_healthy
from edgerpn.runtime.doctor.key_frames import KeyFrames, read_packets
from edgerpn.runtime.doctor.recording import FrameNote, Recording
from edgerpn.runtime.frame import Event
from edgerpn.runtime.sources import CaptureConfig

RTSP = CaptureConfig(source="rtsp://u:secret@host/x", name="door")


def event(kind: Any, **values: Any) -> Event:
    return Event(kind=kind, source="door", happened_at=0.0, message=f"door: {kind} happened", **values)


def make_recording(
    arrivals_s: Any, media_s: Any, *events: Event, config: CaptureConfig = RTSP, **values: Any
) -> Recording:
    frames = [
        FrameNote(connection=1, media_time_s=media, monotonic_s=arrival, num_dropped=0, size_wh=(640, 480))
        for arrival, media in zip(arrivals_s, media_s, strict=True)
    ]
    connected = event("connected", fps=20.0, duration_s=1.0, size_wh=(640, 480), decoder="FFMPEG")
    settings = {"messages": [], "num_messages": 0, "elapsed_s": 10.0, "cpu_cores": 0.1, **values}
    return Recording(config=config, frames=frames, events=[event("started"), connected, *events], **settings)


STEADY_S = np.arange(200) * 0.05


def test_a_steady_stream_has_its_rate_and_no_lag() -> None:
    noise = np.random.default_rng(1).uniform(0, 0.01, 200)
    figures = figures_of(make_recording(100 + STEADY_S + noise, STEADY_S))
    assert figures.fps == pytest.approx(20, abs=0.1)
    assert figures.interval_p50_ms == pytest.approx(50, abs=3)
    assert figures.interval_p99_ms is not None
    assert figures.interval_p99_ms < 61
    assert figures.lag_p99_ms is not None
    assert figures.lag_p99_ms < 11
    assert figures.lag_growth_ms == pytest.approx(0, abs=3)
    assert figures.num_missing == 0
    assert findings_of(figures, make_recording(STEADY_S, STEADY_S)) == []


def test_a_clock_that_runs_slower_shows_as_growth() -> None:
    # 1 in 100 slow: 10 ms a second, of which two thirds of nine seconds are seen.
    figures = figures_of(make_recording(100 + STEADY_S * 1.01, STEADY_S))
    assert figures.lag_growth_ms == pytest.approx(60, abs=10)
    assert findings_of(figures, make_recording(STEADY_S, STEADY_S)) == []


def test_frames_that_a_server_had_buffered_do_not_count() -> None:
    arrivals_s = np.concatenate([100 + np.arange(40) * 0.001, 100.05 + np.arange(160) * 0.05])
    figures = figures_of(make_recording(arrivals_s, STEADY_S))
    assert figures.fps == pytest.approx(20, abs=0.2)
    assert figures.num_frames == 200


def test_holes_in_the_stream_are_missing_frames_and_own_drops_are_not() -> None:
    media_s = np.delete(STEADY_S, [50, 51, 120])
    recording = make_recording(100 + media_s, media_s)
    assert figures_of(recording).num_missing == 3
    notes = [
        dataclasses.replace(note, num_dropped=2) if note.media_time_s == pytest.approx(52 * 0.05) else note
        for note in recording.frames
    ]
    figures = figures_of(dataclasses.replace(recording, frames=notes))
    assert (figures.num_missing, figures.num_dropped) == (1, 2)
    assert figures.fps == pytest.approx(20, abs=0.2)


def test_a_source_without_frames_has_failed_and_its_figures_hold_the_decoders_messages() -> None:
    down = event("reconnecting", reason="timeout", fix="Check power.", attempt=1, delay_s=0.7)
    noise = "[ WARN:0@0.02] global cap.cpp:212 open VIDEOIO(FFMPEG): backend is generally available but"
    lines = ["error while decoding MB 3 4", "error while decoding MB 5 6", noise]
    recording = dataclasses.replace(make_recording([], [], down, messages=lines), events=[event("started"), down])
    figures = figures_of(recording)
    assert (figures.state, figures.fps, figures.size_wh) == ("failed", None, None)
    assert figures.messages == ("error while decoding MB 5 6 (2 like it)",)
    (finding,) = findings_of(figures, recording)
    assert finding.text == "no video (timeout): reconnecting happened"
    assert "Check power" in finding.advice
    assert "open_timeout_s (now 10)" in finding.advice
    udp = dataclasses.replace(recording, config=dataclasses.replace(RTSP, transport="udp"))
    assert "transport=tcp" in findings_of(figures, udp)[0].advice


HEALTHY = StreamFigures(
    source="door",
    state="connected",
    is_live=True,
    size_wh=(640, 480),
    first_frame_s=1.0,
    elapsed_s=10.0,
    num_frames=200,
    fps=20.0,
    stated_fps=20.0,
    interval_p50_ms=50.0,
    interval_p99_ms=60.0,
    interval_max_ms=70.0,
    lag_p50_ms=1.0,
    lag_p99_ms=10.0,
    lag_growth_ms=1.0,
    lag_span_s=9.0,
    num_missing=0,
    cpu_cores=0.1,
    key_frames=KeyFrames(interval_s=2.0, interval_frames=40),
    clock=ClockSkew(skew_s=-1.9),
)


@pytest.mark.parametrize(
    ("changes", "kind", "text", "advice"),
    [
        ({"num_missing": 9}, "problem", "9 of 209 frames never arrived", "sub-stream"),
        ({"num_messages": 1}, "problem", "reported damage in 1 line", "better network"),
        ({"num_gaps": 2, "longest_gap_s": 4.0}, "problem", "frames stopped twice", "gap_s=7 avoids the events"),
        ({"num_gaps": 1, "longest_gap_s": 4.0}, "problem", "4.0 s at most", "stall_s=19"),
        (
            {"num_gaps": 4, "longest_gap_s": 15.2, "interval_p50_ms": 15e3, "interval_p99_ms": 15.2e3},
            "hint",
            "slowly and steadily, 15.0 s apart",
            "without gap_s and stall_s",
        ),
        ({"num_dropped": 30}, "problem", "too slow for 30 of 230 frames", "hardware decoder"),
        ({"fps": 12.0}, "problem", "12.0 frames per second instead of 20", "exposure"),
        ({"fps": None}, "problem", "only one frame arrived", "--seconds"),
        ({"lag_growth_ms": 900.0}, "problem", "falls behind by 900 ms in 9 s", "`stale`"),
        ({"interval_p99_ms": 400.0}, "hint", "unevenly", "max_age_ms should be above 400"),
        ({"num_clock_jumps": 1}, "hint", "clock jumped once", "NTP"),
        ({"num_resized": 1}, "hint", "changed its size once", "--source-size"),
        ({"key_frames": KeyFrames(interval_s=10.0, interval_frames=200)}, "hint", "10.0 s from one key", "GOP"),
        ({"key_frames": KeyFrames(longer_than_s=9.0)}, "hint", "more than 9.0 s from one key", "GOP"),
        ({"first_frame_s": 9.0, "key_frames": KeyFrames(why_unknown="?")}, "hint", "first frame took 9.0 s", "GOP"),
        ({"clock": ClockSkew(skew_s=2.0)}, "hint", "the camera's clock is 2 s ahead", "NTP"),
        ({"clock": ClockSkew(skew_s=-90.0)}, "hint", "the camera's clock is 90 s behind", "NTP"),
        ({"cpu_cores": 1.5}, "hint", "1.5 cores", "sub-stream"),
        ({"size_wh": (3840, 2160)}, "hint", "3840x2160 pictures for a model", "sub-stream"),
        ({"size_wh": (64, 48)}, "hint", "64x48 pictures for a model", "larger stream"),
    ],
)
def test_each_fault_is_a_finding_with_advice(changes: dict[str, Any], kind: str, text: str, advice: str) -> None:
    recording = make_recording(STEADY_S, STEADY_S)
    assert findings_of(HEALTHY, recording, network_hw=(384, 640)) == []
    found = findings_of(dataclasses.replace(HEALTHY, **changes), recording, network_hw=(384, 640))
    assert [finding.kind for finding in found] == [kind]
    assert is_healthy(found) == (kind == "hint")
    assert text in found[0].text
    assert advice in found[0].advice


def test_over_udp_the_first_advice_is_tcp() -> None:
    recording = make_recording(STEADY_S, STEADY_S, config=dataclasses.replace(RTSP, transport="udp"))
    (finding,) = findings_of(dataclasses.replace(HEALTHY, num_missing=50), recording)
    assert finding.advice.startswith("Use transport=tcp")


def test_ended_connections_are_reported_with_their_reason() -> None:
    ends = [event("reconnecting", reason="end_of_stream"), event("reconnecting", reason="resized")]
    recording = make_recording(STEADY_S, STEADY_S, *ends)
    figures = figures_of(recording)
    assert figures.num_reconnects == 1
    (finding,) = findings_of(figures, recording)
    assert finding.text == "the connection ended once (end_of_stream)"
    assert finding.advice


@pytest.mark.parametrize(("stall_s", "kind"), [(None, "hint"), (10.0, "problem")])
def test_a_slow_camera_is_a_problem_only_for_a_limit_of_the_settings(stall_s: float | None, kind: str) -> None:
    ends = [event("stalled", reason="slow"), event("reconnecting", reason="slow", fix="Raise stall_s.")]
    recording = make_recording(STEADY_S, STEADY_S, *ends, config=dataclasses.replace(RTSP, stall_s=stall_s))
    (finding,) = findings_of(figures_of(recording), recording)
    assert (finding.kind, finding.text, finding.advice) == (kind, "the connection ended once (slow)", "Raise stall_s.")


def test_key_frames_are_read_from_ffprobes_lines() -> None:
    lines = ["packet|pts_time=N/A|dts_time=N/A|size=1000|flags=K_"]
    lines += [
        f"packet|pts_time={i / 20}|dts_time={i / 20}|size=100|flags={'K__' if (i + 1) % 40 == 0 else '___'}|side_data|"
        for i in range(100)
    ]
    lines += ["", "stream|codec_name=h264|profile=Main", "stream|codec_name=h264|profile=Main"]
    found = read_packets(lines)
    assert (found.codec, found.interval_frames) == ("h264 Main", 40)
    assert found.interval_s == pytest.approx(2.0)
    assert found.bits_per_s == pytest.approx(8 * 11_000 / 4.95)
    one = read_packets([line.replace("K__", "___") for line in lines])
    assert one.interval_s is None
    assert one.longer_than_s == pytest.approx(4.95)
    for nothing in ([], ["ffprobe: error"], lines[:1]):
        assert read_packets(nothing).interval_s is None
        assert read_packets(nothing).why_unknown
