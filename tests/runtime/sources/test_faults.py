"""What happens when a camera or its network fails: which events come, and how soon the frames are back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Make = Callable[..., Any]

DEADLINE_S = 40.0
"""Only a hang takes longer; how soon things happen is judged by `patience.assert_within`."""


def test_a_camera_gives_frames_with_times_and_without_lag(make_camera: Make, play: Make, patience: Any) -> None:
    camera = make_camera()
    player = play(f"rtsp://127.0.0.1:{camera.port}/cam", name="door")
    connected = player.event("connected")
    assert connected.size_wh == (320, 240)
    assert connected.fps == 20
    assert connected.is_live
    assert "FFMPEG" in connected.decoder
    player.frames_for(0.8)
    frames = player.frames_for(1.5)
    # 20 a second, of which a busy machine may drop some.
    assert sum(1 + num_dropped for _, _, _, num_dropped, _ in frames) <= 40
    media_s = [frame[1] for frame in frames]
    assert media_s == sorted(media_s)
    steps = np.diff(media_s) / [1 + num_dropped for _, _, _, num_dropped, _ in frames[1:]]
    assert np.median(steps) == pytest.approx(0.05, abs=0.01)
    patience.assert_within(float(np.median([frame[2] for frame in frames])) / 1e3, 0.06)
    assert player.kinds(is_patient=True) == ["started", "connected"]


def test_rtsp_over_udp(make_camera: Make, play: Make) -> None:
    camera = make_camera()
    player = play(f"rtsp://127.0.0.1:{camera.port}/cam", transport="udp")
    first, _ = player.frame()
    player.until(lambda item: getattr(item, "index", 0) >= first.index + 20, DEADLINE_S)
    assert player.kinds(is_patient=True) == ["started", "connected"]


def test_a_camera_that_is_down_at_the_start_is_taken_when_it_comes(
    make_camera: Make, make_proxy: Make, play: Make, recovery_s: float
) -> None:
    camera = make_camera()
    proxy = make_proxy(camera.port)
    proxy.refuse()
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam")
    down = player.event("reconnecting")
    assert down.reason == "refused"
    assert "port" in down.fix
    assert player.event("reconnecting").attempt == 2
    proxy.listen()
    player.recovers(recovery_s)
    assert player.events[-1].kind == "connected"


def test_a_killed_server_is_noticed_and_its_return_with_another_size_too(
    make_camera: Make, play: Make, recovery_s: float
) -> None:
    camera = make_camera()
    player = play(f"rtsp://127.0.0.1:{camera.port}/cam")
    first, _ = player.frame()
    camera.kill()
    down = player.event("reconnecting")
    assert down.reason in ("end_of_stream", "refused", "timeout")
    assert player.event("reconnecting").reason == "refused"
    camera.start(size="640x360")
    player.recovers(recovery_s)
    connected, resized = player.events[-2:]
    assert (connected.kind, connected.size_wh, connected.attempt) == ("connected", (640, 360), 2)
    assert (resized.kind, resized.size_wh) == ("resized", (640, 360))
    frame, _ = player.frame()
    assert frame.image.shape == (360, 640, 3)
    assert frame.connection == 2
    assert frame.index > first.index
    # The first connection's picture is still there, whatever happened to its process.
    assert first.image.shape == (240, 320, 3)
    assert first.image.max() > 0


def test_a_frozen_connection_stalls_is_killed_and_comes_back(
    make_camera: Make, make_proxy: Make, play: Make, recovery_s: float, patience: Any
) -> None:
    camera = make_camera()
    proxy = make_proxy(camera.port)
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam")
    player.frame()
    player.frames_for(0.3)
    pid = player.capture.stats.pid
    proxy.is_frozen = True
    start_s = time.monotonic()
    stalled = player.event("stalled")
    # stall_s after the last frame, and not much later.
    assert stalled.duration_s >= 2.0
    patience.assert_within(time.monotonic() - start_s, 3.0)
    assert stalled.reason == "timeout"
    assert player.event("reconnecting").reason == "timeout"
    assert player.capture.stats.state == "reconnecting"
    # What it had sent before it froze is not shown as if it were new.
    assert player.frames_for(0.5) == []
    proxy.is_frozen = False
    player.recovers(recovery_s)
    assert player.capture.stats.pid != pid


def test_a_short_silence_is_a_gap_and_the_process_stays(
    make_camera: Make, make_proxy: Make, play: Make, patience: Any
) -> None:
    camera = make_camera()
    proxy = make_proxy(camera.port)
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam", stall_s=30.0)
    player.frame()
    player.frames_for(1.0)
    pid = player.capture.stats.pid
    proxy.is_frozen = True
    patience.wait_until(lambda: player.capture.stats.state == "quiet")
    time.sleep(1.0)
    proxy.is_frozen = False
    gap, _ = player.until(lambda item: getattr(item, "duration_s", 0) > 1.0 and item.kind == "gap", DEADLINE_S)
    assert gap.reason == "silence"
    # What comes now was sent long ago, which its own times cannot know and the camera's clock can.
    late, _ = player.until(lambda item: getattr(item, "lag_ms", None) is not None, DEADLINE_S)
    assert late.lag_ms > 300
    assert player.capture.stats.pid == pid


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


def test_cut_connections_come_back(make_camera: Make, make_proxy: Make, play: Make, recovery_s: float) -> None:
    camera = make_camera()
    proxy = make_proxy(camera.port)
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam")
    for _ in range(2):
        player.recovers()
        proxy.cut()
        assert player.event("reconnecting").attempt >= 1
        player.recovers(recovery_s)


def test_lost_packets_damage_pictures_but_end_nothing(
    make_camera: Make, make_proxy: Make, play: Make, recovery_s: float, patience: Any
) -> None:
    camera = make_camera(gop=10)
    proxy = make_proxy(camera.port)
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam")
    player.frame()
    player.frames_for(1.0)
    num_before = player.capture.stats.num_messages
    proxy.loss = 0.1
    frames = player.frames_for(3.0)
    # The decoder's complaints are what shows the damage; frames go on meanwhile, by the same connection.
    patience.wait_until(lambda: player.frames_for(0.2) and player.capture.stats.num_messages > num_before)
    assert frames
    assert {frame[4] for frame in frames} == {(240, 320, 3)}
    assert player.kinds(is_patient=True) == ["started", "connected"]
    proxy.loss = 0.0
    player.recovers(recovery_s)
    assert player.capture.messages


def test_corrupted_packets_end_nothing(
    make_camera: Make, make_proxy: Make, play: Make, recovery_s: float, patience: Any
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
    player.recovers(recovery_s)
    frames += player.frames_for(0.5)
    assert {frame[4] for frame in frames} == {(240, 320, 3)}
    # Damaged pictures are neither errors of the source nor the end of the stream. (A damaged packet may tell of
    # another size, very rarely for long enough to be believed.)
    assert "error" not in player.kinds()
    assert {event.reason for event in player.events if event.kind == "reconnecting"} <= {"resized"}


def test_a_squeezed_line_shows_as_lag(make_camera: Make, make_proxy: Make, play: Make, recovery_s: float) -> None:
    camera = make_camera(pattern="snow", kbps=1600)
    proxy = make_proxy(camera.port)
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam", stall_s=30.0)
    player.frame()
    player.frames_for(1.5)
    proxy.bytes_per_s = 60_000
    player.until(lambda item: (getattr(item, "lag_ms", None) or 0) > 500, DEADLINE_S)
    proxy.bytes_per_s = 0
    player.recovers(recovery_s)


def test_joining_in_the_middle_of_a_group_of_pictures_waits_for_its_end_at_most(
    make_camera: Make, play: Make, patience: Any
) -> None:
    camera = make_camera(gop=40)
    first = play(f"rtsp://127.0.0.1:{camera.port}/cam", name="first")
    first.frame()
    first.frames_for(0.7)
    second = play(f"rtsp://127.0.0.1:{camera.port}/cam", name="second")
    frame, waited_s = second.frame()
    # 40 frames at 20 per second from one key frame to the next, and the start of a process.
    patience.assert_within(waited_s, 2.0 + 2.0)
    assert frame.image.shape == (240, 320, 3)


def test_a_change_of_size_in_mid_stream_is_followed(
    make_camera: Make, play: Make, recovery_s: float, patience: Any
) -> None:
    camera = make_camera()
    player = play(f"rtsp://127.0.0.1:{camera.port}/cam")
    player.frame()
    player.frames_for(0.5)
    camera.command("size 640x480")
    start_s = time.monotonic()
    resized = player.event("resized")
    patience.assert_within(time.monotonic() - start_s, recovery_s)
    assert resized.size_wh == (640, 480)
    frame, _ = player.frame()
    assert frame.image.shape == (480, 640, 3)
    told = next(event for event in player.events if event.kind == "reconnecting")
    assert (told.reason, told.delay_s) == ("resized", 0.0)


def test_a_wrong_password_is_named_and_never_shown(make_camera: Make, play: Make) -> None:
    camera = make_camera(user="viewer", password="right%horse")
    player = play(f"rtsp://viewer:wrong%40battery@127.0.0.1:{camera.port}/cam")
    refused = player.event("reconnecting")
    assert refused.reason == "unauthorised"
    # Cameras lock accounts: no quick attempts.
    assert refused.delay_s >= 0.4
    assert "password" in refused.fix
    told = repr(player.events) + repr(player.capture.messages) + repr(player.capture.config)
    assert "battery" not in told
    good = play(f"rtsp://viewer:right%25horse@127.0.0.1:{camera.port}/cam", name="good")
    good.frame()


def test_a_wrong_path_is_named(make_camera: Make, play: Make) -> None:
    camera = make_camera()
    player = play(f"rtsp://127.0.0.1:{camera.port}/elsewhere")
    assert player.event("reconnecting").reason == "not_found"


def test_a_jump_of_the_cameras_clock_is_told_and_lag_starts_anew(
    make_camera: Make, make_proxy: Make, play: Make
) -> None:
    camera = make_camera()
    proxy = make_proxy(camera.port)
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam")
    player.frame()
    player.frames_for(0.7)
    for jump_s in (100, -50):
        proxy.clock_jump_s += jump_s
        gap, _ = player.until(lambda item: getattr(item, "reason", "") == "clock", DEADLINE_S)
        assert gap.kind == "gap"
        assert abs(gap.duration_s - jump_s) < 2
        # Frames go on, and the jump is not taken for lag.
        player.until(lambda item: getattr(item, "lag_ms", None) is not None and item.lag_ms < 100, DEADLINE_S)
    assert player.capture.stats.num_connections == 1
