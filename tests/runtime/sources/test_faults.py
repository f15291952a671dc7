"""Faults of cameras and networks: the events, their order, and the return of the frames."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Make = Callable[..., Any]

DEADLINE_S = 40.0
"""Only a hang takes longer."""


def test_a_camera_gives_frames_with_times_and_without_lag(camera: Any, play: Make) -> None:
    player = play(f"rtsp://127.0.0.1:{camera.port}/cam", name="door")
    connected = player.event("connected")
    assert connected.size_wh == (320, 240)
    assert connected.fps == 20
    assert connected.is_live
    assert "FFMPEG" in connected.decoder
    player.frames_for(0.8)
    frames = player.frames_for(1.0)
    # 20 per second, of which a busy machine may drop some.
    assert sum(1 + num_dropped for _, _, _, num_dropped, _ in frames) <= 30
    media_s = [frame[1] for frame in frames]
    assert media_s == sorted(media_s)
    steps = np.diff(media_s) / [1 + num_dropped for _, _, _, num_dropped, _ in frames[1:]]
    assert np.median(steps) == pytest.approx(0.05, abs=0.01)
    # The fastest frame defines the lag of the others.
    lags_ms = [frame[2] for frame in frames]
    assert 0 <= min(lags_ms) < 60
    assert player.kinds(is_patient=True) == ["started", "connected"]


@pytest.mark.slow
def test_rtsp_over_udp(camera: Any, play: Make) -> None:
    player = play(f"rtsp://127.0.0.1:{camera.port}/cam", transport="udp")
    first, _ = player.frame()
    player.until(lambda item: getattr(item, "index", 0) >= first.index + 10, DEADLINE_S)
    assert player.kinds(is_patient=True) == ["started", "connected"]


def test_a_camera_that_is_down_at_the_start_connects_when_it_comes(camera: Any, make_proxy: Make, play: Make) -> None:
    proxy = make_proxy(camera.port)
    proxy.refuse()
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam")
    down = player.event("reconnecting")
    assert down.reason == "refused"
    assert "port" in down.fix
    assert player.event("reconnecting").attempt == 2
    proxy.listen()
    player.recovers()
    assert player.events[-1].kind == "connected"


def test_a_killed_server_reconnects_with_another_size(make_camera: Make, play: Make) -> None:
    camera = make_camera()
    player = play(f"rtsp://127.0.0.1:{camera.port}/cam")
    first, _ = player.frame()
    camera.kill()
    down = player.event("reconnecting")
    assert down.reason in ("end_of_stream", "refused", "timeout")
    assert player.event("reconnecting").reason == "refused"
    camera.start(size="640x360")
    player.recovers()
    connected, resized = player.events[-2:]
    assert (connected.kind, connected.size_wh, connected.attempt) == ("connected", (640, 360), 2)
    assert (resized.kind, resized.size_wh) == ("resized", (640, 360))
    frame, _ = player.frame()
    assert frame.image.shape == (360, 640, 3)
    assert frame.connection == 2
    assert frame.index > first.index
    # The first connection's picture outlives its process.
    assert first.image.shape == (240, 320, 3)
    assert first.image.max() > 0


def test_a_frozen_connection_stalls_is_killed_and_comes_back(camera: Any, make_proxy: Make, play: Make) -> None:
    proxy = make_proxy(camera.port)
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam", stall_s=1.5)
    player.frame()
    player.frames_for(0.3)
    pid = player.capture.stats.pid
    proxy.is_frozen = True
    stalled = player.event("stalled")
    assert stalled.duration_s >= 1.5
    assert stalled.reason == "timeout"
    assert player.event("reconnecting").reason == "timeout"
    assert player.capture.stats.state == "reconnecting"
    # Frames from before the freeze do not appear as new ones.
    assert player.frames_for(0.3) == []
    proxy.is_frozen = False
    player.recovers()
    assert player.capture.stats.pid != pid


def test_a_short_silence_is_a_gap_and_the_process_stays(
    camera: Any, make_proxy: Make, play: Make, patience: Any
) -> None:
    proxy = make_proxy(camera.port)
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam", gap_s=0.4, stall_s=30.0)
    player.frame()
    player.frames_for(0.6)
    pid = player.capture.stats.pid
    proxy.is_frozen = True
    patience.wait_until(lambda: player.capture.stats.state == "quiet")
    time.sleep(0.5)
    proxy.is_frozen = False
    gap, _ = player.until(lambda item: getattr(item, "duration_s", 0) > 0.6 and item.kind == "gap", DEADLINE_S)
    assert gap.reason == "silence"
    # The frames that come now were sent long ago, as the camera's clock shows.
    late, _ = player.until(lambda item: getattr(item, "lag_ms", None) is not None, DEADLINE_S)
    # A busy test takes the newest frame, after those were dropped.
    assert late.lag_ms > 300 or late.num_dropped > 5
    assert player.capture.stats.pid == pid


@pytest.mark.slow
def test_a_camera_that_pauses_is_a_gap(make_camera: Make, play: Make) -> None:
    camera = make_camera()
    player = play(f"rtsp://127.0.0.1:{camera.port}/cam", stall_s=30.0)
    player.frame()
    player.frames_for(0.5)
    camera.command("pause")
    time.sleep(1.5)
    camera.command("resume")
    gap, _ = player.until(lambda item: getattr(item, "duration_s", 0) > 0.7 and item.kind == "gap", DEADLINE_S)
    assert gap.reason == "silence"
    assert "reconnecting" not in player.kinds()


@pytest.mark.slow
def test_cut_connections_come_back(camera: Any, make_proxy: Make, play: Make) -> None:
    proxy = make_proxy(camera.port)
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam")
    for _ in range(2):
        player.recovers()
        proxy.cut()
        assert player.event("reconnecting").attempt >= 1
        player.recovers()


@pytest.mark.slow
def test_lost_packets_damage_pictures_but_do_not_end_the_connection(
    camera: Any, make_proxy: Make, play: Make, patience: Any
) -> None:
    proxy = make_proxy(camera.port)
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam", stall_s=10.0)
    player.frame()
    player.frames_for(1.0)
    num_before = player.capture.stats.num_messages
    proxy.loss = 0.2
    frames: list[Any] = []

    def is_damaged() -> bool:
        frames.extend(player.frames_for(0.2))
        return bool(frames) and player.capture.stats.num_messages > num_before

    # The decoder's messages show the damage; the same connection continues meanwhile.
    patience.wait_until(is_damaged)
    assert {frame[4] for frame in frames} == {(240, 320, 3)}
    proxy.loss = 0.0
    player.recovers()
    assert player.kinds(is_patient=True) == ["started", "connected"]
    assert player.capture.messages


@pytest.mark.slow
def test_corrupted_packets_do_not_end_the_connection(
    make_camera: Make, make_proxy: Make, play: Make, patience: Any
) -> None:
    camera = make_camera(gop=10, pattern="snow", kbps=2000)
    proxy = make_proxy(camera.port)
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam")
    player.frame()
    player.frames_for(1.0)
    num_before = player.capture.stats.num_messages
    proxy.corruption = 0.2
    frames = player.frames_for(2.5)
    patience.wait_until(lambda: player.frames_for(0.2) and player.capture.stats.num_messages > num_before)
    proxy.corruption = 0.0
    player.recovers()
    frames += player.frames_for(0.5)
    assert {frame[4] for frame in frames} == {(240, 320, 3)}
    # Damaged pictures are neither errors of the source nor the end of the stream. (A damaged packet may announce
    # another size, very rarely for long enough to cause a reconnect.)
    assert "error" not in player.kinds()
    assert {event.reason for event in player.events if event.kind == "reconnecting"} <= {"resized"}


@pytest.mark.slow
def test_a_slow_network_shows_as_lag(make_camera: Make, make_proxy: Make, play: Make) -> None:
    camera = make_camera(pattern="snow", kbps=1600)
    proxy = make_proxy(camera.port)
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam", stall_s=30.0)
    player.frame()
    player.frames_for(1.5)
    proxy.bytes_per_s = 60_000
    player.until(lambda item: (getattr(item, "lag_ms", None) or 0) > 500, DEADLINE_S)
    proxy.bytes_per_s = 0
    player.recovers()


@pytest.mark.slow
def test_a_viewer_that_joins_between_key_frames_waits_for_the_next(make_camera: Make, play: Make) -> None:
    camera = make_camera(gop=40)
    first = play(f"rtsp://127.0.0.1:{camera.port}/cam", name="first")
    first.frame()
    first.frames_for(0.7)
    second = play(f"rtsp://127.0.0.1:{camera.port}/cam", name="second")
    frame, _ = second.frame()
    assert frame.image.shape == (240, 320, 3)
    assert second.kinds(is_patient=True) == ["started", "connected"]


def test_a_change_of_size_in_mid_stream_is_followed(make_camera: Make, play: Make) -> None:
    camera = make_camera(gop=10)
    player = play(f"rtsp://127.0.0.1:{camera.port}/cam")
    player.frame()
    player.frames_for(0.3)
    camera.command("size 640x480")
    resized = player.event("resized")
    assert resized.size_wh == (640, 480)
    frame, _ = player.frame()
    assert frame.image.shape == (480, 640, 3)
    # The new connection starts at once and precedes the event.
    reconnecting = next(event for event in player.events if event.kind == "reconnecting")
    assert (reconnecting.reason, reconnecting.delay_s) == ("resized", 0.0)


def test_a_wrong_password_is_named_and_never_shown(make_camera: Make, play: Make) -> None:
    camera = make_camera(user="viewer", password="right%horse")
    player = play(f"rtsp://viewer:wrong%40battery@127.0.0.1:{camera.port}/cam")
    refused = player.event("reconnecting")
    assert refused.reason == "unauthorised"
    # Cameras lock accounts: no quick attempts.
    assert refused.delay_s >= 0.4
    assert "password" in refused.fix
    texts = repr(player.events) + repr(player.capture.messages) + repr(player.capture.config)
    assert "battery" not in texts
    good = play(f"rtsp://viewer:right%25horse@127.0.0.1:{camera.port}/cam", name="good")
    good.frame()


def test_a_wrong_path_is_named(camera: Any, play: Make) -> None:
    player = play(f"rtsp://127.0.0.1:{camera.port}/elsewhere")
    assert player.event("reconnecting").reason == "not_found"


def test_a_jump_of_the_cameras_clock_is_reported_and_restarts_the_lag(
    camera: Any, make_proxy: Make, play: Make
) -> None:
    proxy = make_proxy(camera.port)
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam")
    player.frame()
    player.frames_for(0.7)
    for jump_s in (100, -50):
        proxy.clock_jump_s += jump_s
        gap, _ = player.until(lambda item: getattr(item, "reason", "") == "clock", DEADLINE_S)
        assert gap.kind == "gap"
        assert abs(gap.duration_s - jump_s) < 2
        # Frames continue, and the jump does not count as lag.
        player.until(lambda item: getattr(item, "lag_ms", None) is not None and item.lag_ms < 100, DEADLINE_S)
    assert player.capture.stats.num_connections == 1
