"""Slow cameras: limits that follow their pace, and messages that name the settings."""

from __future__ import annotations

import logging
import re
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from edgerpn.runtime.frame import Event, Frame
from edgerpn.runtime.sources import CaptureConfig, pace
from edgerpn.runtime.sources.pace import Pace

Make = Callable[..., Any]

CAMERA = CaptureConfig(source="http://camera/stream")


def paced(*intervals_s: float, **settings: Any) -> Pace:
    found = Pace(CaptureConfig(source=CAMERA.source, **settings))
    for interval_s in (0.0, *intervals_s):
        found.add(interval_s)
    return found


def limits(found: Pace) -> tuple[float, float, float]:
    return found.gap_s, found.stall_s, found.open_s


def slow_camera(make_mjpeg: Make, interval_s: float, **options: Any) -> Any:
    """Starts a camera that sends its first picture at once, of a size that needs no second one for its recognition."""
    camera = make_mjpeg(size_wh=(640, 480), **options)
    camera.pauses = dict.fromkeys(range(1, 1000), interval_s)
    return camera


def test_a_camera_of_unknown_or_quick_pace_has_the_usual_limits() -> None:
    assert limits(Pace(CAMERA)) == limits(paced(*[0.04] * 9)) == limits(paced()) == (1, 10, 10)


@pytest.mark.parametrize(
    ("intervals_s", "expected"),
    [
        ([15.0, 15.2, 14.8], (45, 60, 10)),
        # One late picture is a gap, and not a new pace.
        ([0.04, 0.04, 0.04, 9.0], (1, 10, 10)),
        # It becomes slower at night, step by step.
        ([0.04, 0.2, 3.0, 5.0, 5.0], (9, 12, 10)),
        ([60.0, 60.0], (120, 120, 10)),
    ],
)
def test_limits_follow_a_slow_pace_up_to_their_maximum(
    intervals_s: list[float], expected: tuple[float, float, float]
) -> None:
    assert limits(paced(*intervals_s)) == pytest.approx(expected)


def test_limits_of_the_settings_stay() -> None:
    slow = paced(15.0, 15.0, gap_s=2.0, stall_s=12.0, open_timeout_s=8.0)
    assert limits(slow) == (2, 12, 8)
    assert slow.is_slow
    assert not slow.is_adapted
    assert (slow.widen(is_open=True), slow.widen(is_open=False)) == (None, None)
    # A rate that is requested is the expected pace; a gap beyond 10 s raises the limit above it.
    assert limits(Pace(CaptureConfig(source=CAMERA.source, rate_hz=0.1))) == (30, 40, 10)
    assert limits(Pace(CaptureConfig(source=CAMERA.source, rate_hz=1 / 300))) == pytest.approx((600, 600, 10))
    assert limits(Pace(CaptureConfig(source=CAMERA.source, gap_s=20.0))) == (20, 40, 10)


def test_each_silence_after_a_few_pictures_doubles_the_limit_until_the_pace_is_quick() -> None:
    found = paced()
    assert (found.is_slow, found.num_frames) == (True, 1)
    assert [found.widen(is_open=True) for _ in range(5)] == [20, 40, 80, 120, None]
    found.restart()
    assert limits(found) == (1, 120, 60)
    for _ in range(6):
        found.add(0.04)
    assert limits(found) == (1, 10, 10)
    assert (found.is_slow, found.num_frames) == (False, 6)
    assert [found.widen(is_open=False) for _ in range(4)] == [20, 40, 60, None]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stall_s": 10.0, "rate_hz": 0.05}, "stall_s: expected more than the 20 s between two frames of rate_hz"),
        ({"stall_s": 0.9}, "stall_s: expected more than gap_s"),
        ({"rate_hz": float("inf")}, "rate_hz: expected a rate above 0"),
    ],
)
def test_settings_that_no_camera_can_meet_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaptureConfig(source=CAMERA.source, **settings)


def test_a_slow_camera_is_killed_until_its_pace_fits_and_then_never_again(
    make_mjpeg: Make, play: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Seconds instead of a quarter of a minute.
    monkeypatch.setattr(pace, "SILENCE_S", 0.3)
    caplog.set_level(logging.INFO, logger="edgerpn")
    limits_of_settings = {"gap_s": 0.2, "stall_s": None, "open_timeout_s": 30.0, "backoff_first_s": 0.05}
    player = play(slow_camera(make_mjpeg, 0.5).url, name="slow", **limits_of_settings)
    stalled = player.event("stalled")
    # On a busy machine more pictures may have come when the first is read, and a later limit be too short again.
    assert stalled.reason == "slow"
    assert re.search(r"slow: \d pictures?, then no frame for", stalled.message)
    assert "larger stall_s" in stalled.fix
    assert re.search(r", with \d\.\d s for each picture", player.event("reconnecting").message)
    num_frames: Counter[int] = Counter()

    def is_sixth_of_its_connection(item: Frame | Event) -> bool:
        if isinstance(item, Frame):
            num_frames[item.connection] += 1
            return num_frames[item.connection] >= 6
        return False

    player.until(is_sixth_of_its_connection, 60.0)
    told = [record.getMessage() for record in caplog.records if "limits of silence adapt" in record.getMessage()]
    assert len(told) == 1
    assert "stall_s is" in told[0]


def test_a_limit_of_the_settings_is_kept_and_named(make_mjpeg: Make, play: Make) -> None:
    player = play(slow_camera(make_mjpeg, 60.0).url, gap_s=0.2, stall_s=0.5, open_timeout_s=30.0, backoff_first_s=0.05)
    for _ in range(2):
        stalled = player.event("stalled")
        assert stalled.reason == "slow"
        assert "(stall_s is 0.5)" in stalled.message
        assert "firewall" not in stalled.fix
        assert "for each picture" not in player.event("reconnecting").message


def test_a_first_picture_that_comes_late_gets_more_time(
    make_mjpeg: Make, play: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "SILENCE_S", 0.6)
    # Without lengths each picture is complete when the next one begins.
    camera = slow_camera(make_mjpeg, 0.8, has_lengths=False)
    player = play(camera.url, stall_s=40.0, open_timeout_s=None, backoff_first_s=0.05)
    late = player.event("reconnecting")
    assert late.reason == "timeout"
    assert "the server accepts the connection, and sent no video within 0.6 s (open_timeout_s)" in late.message
    assert ", with 1.2 s for each picture" in late.message
    player.frame()


def test_a_silent_server_and_a_silent_host_are_told_apart(play: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        down = play(url, open_timeout_s=0.5).event("reconnecting")
    assert (down.reason, "the server accepts the connection" in down.message) == ("timeout", True)
