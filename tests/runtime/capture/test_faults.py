"""What happens when a camera or its network fails: which events come, and how soon the frames are back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Make = Callable[..., Any]


def test_a_camera_gives_frames_with_times_and_without_lag(make_camera: Make, play: Make) -> None:
    camera = make_camera()
    player = play(f"rtsp://127.0.0.1:{camera.port}/cam", name="door")
    connected = player.event("connected")
    assert connected.size_wh == (320, 240)
    assert connected.fps == 20
    assert connected.is_live
    assert "FFMPEG" in connected.decoder
    player.frames_for(0.8)
    frames = player.frames_for(1.0)
    assert 15 <= len(frames) <= 25
    media_s = [frame[1] for frame in frames]
    assert media_s == sorted(media_s)
    assert 0.6 < media_s[-1] - media_s[0] < 1.3
    assert sorted(lag_ms for _, _, lag_ms, _, _ in frames)[len(frames) // 2] < 60
    assert player.kinds() == ["started", "connected"]


def test_rtsp_over_udp(make_camera: Make, play: Make) -> None:
    camera = make_camera()
    player = play(f"rtsp://127.0.0.1:{camera.port}/cam", transport="udp")
    player.frame()
    assert len(player.frames_for(1.0)) >= 10


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
    assert player.fresh_frame(recovery_s) < recovery_s
    assert player.events[-1].kind == "connected"


def test_a_killed_server_is_noticed_and_its_return_with_another_size_too(
    make_camera: Make, play: Make, recovery_s: float
) -> None:
    camera = make_camera()
    player = play(f"rtsp://127.0.0.1:{camera.port}/cam")
    first, _ = player.frame()
    camera.kill()
    down = player.event("reconnecting", 3.0)
    assert down.reason in ("end_of_stream", "refused", "timeout")
    assert player.event("reconnecting").reason == "refused"
    camera.start(size="640x360")
    player.fresh_frame(recovery_s)
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
    make_camera: Make, make_proxy: Make, play: Make, recovery_s: float
) -> None:
    camera = make_camera()
    proxy = make_proxy(camera.port)
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam")
    player.frame()
    player.frames_for(0.3)
    pid = player.capture.stats.pid
    proxy.is_frozen = True
    start_s = time.monotonic()
    stalled = player.event("stalled", 4.0)
    assert 0.8 < time.monotonic() - start_s < 2.0
    assert stalled.reason == "timeout"
    assert player.event("reconnecting").reason == "timeout"
    assert player.capture.stats.state == "reconnecting"
    assert player.frames_for(0.5) == []
    proxy.is_frozen = False
    assert player.fresh_frame(recovery_s) < recovery_s
    assert player.capture.stats.pid != pid


def test_a_short_silence_is_a_gap_and_the_process_stays(make_camera: Make, make_proxy: Make, play: Make) -> None:
    camera = make_camera()
    proxy = make_proxy(camera.port)
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam", stall_s=5.0)
    player.frame()
    player.frames_for(1.0)
    pid = player.capture.stats.pid
    proxy.is_frozen = True
    time.sleep(1.2)
    assert player.capture.stats.state == "quiet"
    proxy.is_frozen = False
    gap = player.event("gap", 3.0)
    assert gap.reason == "silence"
    assert 0.7 < gap.duration_s < 2.0
    # What comes now was sent long ago, which its own times cannot know and the camera's clock can.
    late, _ = player.until(lambda item: getattr(item, "lag_ms", None) is not None, 2.0)
    assert late.lag_ms > 300
    assert player.capture.stats.pid == pid


def test_a_camera_that_pauses_is_a_gap(make_camera: Make, play: Make) -> None:
    camera = make_camera()
    player = play(f"rtsp://127.0.0.1:{camera.port}/cam", stall_s=5.0)
    player.frame()
    player.frames_for(0.5)
    camera.command("pause")
    time.sleep(1.0)
    camera.command("resume")
    gap = player.event("gap", 3.0)
    assert gap.reason == "silence"
    assert gap.duration_s > 0.6
    assert "reconnecting" not in player.kinds()


def test_cut_connections_come_back(make_camera: Make, make_proxy: Make, play: Make, recovery_s: float) -> None:
    camera = make_camera()
    proxy = make_proxy(camera.port)
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam")
    for _ in range(2):
        player.fresh_frame()
        proxy.cut()
        assert player.event("reconnecting", 3.0).attempt >= 1
        assert player.fresh_frame(recovery_s) < recovery_s


def test_lost_packets_damage_pictures_but_end_nothing(
    make_camera: Make, make_proxy: Make, play: Make, recovery_s: float
) -> None:
    camera = make_camera(gop=10)
    proxy = make_proxy(camera.port)
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam")
    player.frame()
    proxy.loss = 0.1
    frames = player.frames_for(3.0)
    assert len(frames) >= 10
    assert {frame[4] for frame in frames} == {(240, 320, 3)}
    assert "error" not in player.kinds()
    proxy.loss = 0.0
    assert player.fresh_frame(recovery_s) < recovery_s
    # The decoder's complaints are at hand, and are what shows the damage.
    assert player.capture.messages


def test_corrupted_packets_end_nothing(make_camera: Make, make_proxy: Make, play: Make, recovery_s: float) -> None:
    camera = make_camera(gop=10, pattern="snow", kbps=2000)
    proxy = make_proxy(camera.port)
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam")
    player.frame()
    proxy.corruption = 0.2
    player.frames_for(2.5)
    proxy.corruption = 0.0
    assert player.fresh_frame(recovery_s) < recovery_s
    shapes = {frame[4] for frame in player.frames_for(0.5)}
    assert shapes == {(240, 320, 3)}


def test_a_squeezed_line_shows_as_lag(make_camera: Make, make_proxy: Make, play: Make, recovery_s: float) -> None:
    camera = make_camera(pattern="snow", kbps=1600)
    proxy = make_proxy(camera.port)
    player = play(f"rtsp://127.0.0.1:{proxy.port}/cam", stall_s=4.0)
    player.frame()
    player.frames_for(1.5)
    proxy.bytes_per_s = 60_000
    squeezed = player.frames_for(4.0)
    assert squeezed
    assert max(frame[2] for frame in squeezed) > 500
    proxy.bytes_per_s = 0
    assert player.fresh_frame(recovery_s) < recovery_s


def test_joining_in_the_middle_of_a_group_of_pictures_waits_for_its_end_at_most(make_camera: Make, play: Make) -> None:
    camera = make_camera(gop=40)
    first = play(f"rtsp://127.0.0.1:{camera.port}/cam", name="first")
    first.frame()
    first.frames_for(0.7)
    second = play(f"rtsp://127.0.0.1:{camera.port}/cam", name="second")
    frame, waited_s = second.frame()
    # 40 frames at 20 per second from one key frame to the next, and the start of a process.
    assert waited_s < 2.0 + 2.0
    assert frame.image.shape == (240, 320, 3)


def test_a_change_of_size_in_mid_stream_is_followed(make_camera: Make, play: Make, recovery_s: float) -> None:
    camera = make_camera()
    player = play(f"rtsp://127.0.0.1:{camera.port}/cam")
    player.frame()
    player.frames_for(0.5)
    camera.command("size 640x480")
    resized = player.event("resized", recovery_s)
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
        gap = player.event("gap", 4.0)
        assert gap.reason == "clock"
        assert abs(gap.duration_s - jump_s) < 2
        frames = player.frames_for(1.0)
        assert frames
        assert min(frame[2] for frame in frames) < 100
    assert player.capture.stats.num_connections == 1
