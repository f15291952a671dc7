"""Policies, fairness between sources, and memory that is safe to hold."""

from __future__ import annotations

import gc
import signal
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from edgerpn.runtime.frame import Event, Frame
from edgerpn.runtime.sources import CaptureConfig

Make = Callable[..., Any]


def test_the_newest_frame_wins_and_drops_are_counted(make_mjpeg: Make, play: Make) -> None:
    player = play(make_mjpeg(fps=50).url)
    player.frame()
    start, _ = player.frame()
    last_index, num_dropped = start.index, 0
    del start
    for _ in range(4):
        time.sleep(0.25)
        num_received = player.capture.stats.num_frames
        frame, _ = player.frame()
        # The newest frame that had arrived, and not one that waited; the last may still be on its way into the mailbox.
        assert frame.index >= num_received - 2
        assert frame.index - last_index == frame.num_dropped + 1
        last_index, num_dropped = frame.index, num_dropped + frame.num_dropped
    # 50 per second arrived, and 4 were taken.
    assert num_dropped > 10
    assert player.capture.stats.num_dropped >= num_dropped


def test_a_queue_drops_its_oldest(make_mjpeg: Make, play: Make, patience: Any) -> None:
    player = play(make_mjpeg(fps=50).url, policy="queue", queue_frames=4)
    first, _ = player.frame()
    # On a busy machine some were dropped before the first was taken.
    patience.wait_until(lambda: player.capture.stats.num_dropped >= first.num_dropped + 5)
    # Four frames wait; the missing ones were older, and are counted.
    frames = [player.capture.take(0) for _ in range(4)]
    assert all(isinstance(frame, Frame) for frame in frames)
    assert frames[0].index - first.index == frames[0].num_dropped + 1 >= 6
    for before, after in pairwise(frames):
        assert after.index - before.index == after.num_dropped + 1


def test_a_rate_cap_holds_on_a_live_source(make_mjpeg: Make, play: Make) -> None:
    player = play(make_mjpeg(fps=50).url, max_fps=10.0)
    first, _ = player.frame()
    last, _ = player.until(lambda item: getattr(item, "index", 0) >= first.index + 50, 40.0)
    # By the time of capture, because a busy machine takes frames late.
    assert 3 <= player.num_frames - 1 <= 10.5 * (last.monotonic_s - first.monotonic_s)
    # Frames beyond the cap count as skipped, not as dropped.
    assert last.num_skipped >= 1


def test_a_rate_cap_slower_than_stall_s_is_not_a_stall(make_mjpeg: Make, play: Make) -> None:
    player = play(make_mjpeg(fps=50).url, max_fps=0.1, gap_s=0.4, stall_s=1.2)
    player.frame()
    player.frames_for(2.0)
    assert player.kinds(is_patient=True) == ["started", "connected"]


def test_held_frames_stay_unchanged_while_others_are_dropped(make_mjpeg: Make, play: Make) -> None:
    player = play(make_mjpeg(fps=50).url, slots=4, stall_s=30.0)
    # Views of views: the memory counts, not the array.
    held = [player.frame()[0].image[2:, 1:, :1] for _ in range(12)]
    copies = [view.copy() for view in held]
    gc.collect()
    frame, _ = player.frame()
    assert all((view == copy).all() for view, copy in zip(held, copies, strict=True))
    assert player.kinds(is_patient=True) == ["started", "connected"]
    assert not frame.image.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        frame.image[0, 0, 0] = 1


def test_a_held_frame_outlives_its_capture(clip: Path, play: Make) -> None:
    player = play(str(clip))
    frame, _ = player.frame()
    player.capture.close()
    assert frame.image.shape == (64, 96, 3)
    assert (frame.image == 0).all()
    assert player.capture.is_exhausted or player.capture.take(0) is not None


def test_sources_alternate_and_a_dead_one_does_not_slow_them(
    make_mjpeg: Make, make_group: Make, quick: dict[str, Any]
) -> None:
    group = make_group()
    group.add(CaptureConfig(source="http://127.0.0.1:9/dead", name="dead", **quick))
    group.add(CaptureConfig(source=make_mjpeg(fps=200).url, name="flood", **quick))
    for name in ("a", "b"):
        group.add(CaptureConfig(source=make_mjpeg(fps=20).url, name=name, **quick))
    connected: set[str] = set()
    counts: Counter[str] = Counter()
    end_s = time.monotonic() + 40.0
    while time.monotonic() < end_s and sum(counts.values()) < 60:
        item = group.take(0.5)
        if isinstance(item, Event):
            connected |= {item.source} if item.kind == "connected" else set()
        elif isinstance(item, Frame) and len(connected) == 3:
            counts[item.source] += 1
            # A model that is slower than all of them together.
            time.sleep(0.02)
    assert set(counts) == {"a", "b", "flood"}
    # The two slow sources lose no frames to the fast one.
    assert min(counts["a"], counts["b"]) > 0.6 * max(counts["a"], counts["b"])
    assert min(counts["a"], counts["b"]) > 10


def test_sources_come_and_go_while_the_group_runs(make_mjpeg: Make, make_group: Make, quick: dict[str, Any]) -> None:
    group = make_group()
    first = group.add(CaptureConfig(source=make_mjpeg().url, name="first", **quick))
    with pytest.raises(ValueError, match="two sources named 'first'"):
        group.add(CaptureConfig(source="/dev/video0", name="first"))
    second = group.add(CaptureConfig(source=make_mjpeg().url, name="second", **quick))
    seen: set[str] = set()
    end_s = time.monotonic() + 40
    while seen != {"first", "second"} and time.monotonic() < end_s:
        item = group.take(1.0)
        seen |= {item.source} if isinstance(item, Frame) else set()
    assert seen == {"first", "second"}
    first.close()
    assert group.captures == (second,)
    assert first.stats.pid is None
    group.take(0)
    later = [group.take(1.0) for _ in range(5)]
    assert {item.source for item in later if item is not None} == {"second"}
    group.close()
    assert group.take(1.0) is None or group.wait(0) == ()
    with pytest.raises(RuntimeError, match="closed"):
        group.add(CaptureConfig(source="0"))


def test_a_group_of_files_ends_when_all_have_ended(clip: Path, make_group: Make) -> None:
    group = make_group()
    for name in "abc":
        group.add(CaptureConfig(source=str(clip), name=name))
    counts: Counter[str] = Counter()
    while (item := group.take(40.0)) is not None:
        counts[item.source] += isinstance(item, Frame)
    assert counts == {"a": 60, "b": 60, "c": 60}


def test_waiting_events_are_bounded(play: Make) -> None:
    player = play("http://127.0.0.1:9/x", backoff_first_s=0.001, backoff_max_s=0.001)
    mailbox = player.capture.mailbox
    event = player.event("reconnecting")
    for _ in range(1000):
        mailbox.put_event(event)
    assert len(mailbox) <= 260
    assert player.capture.stats.num_dropped_events > 700


def test_an_error_in_the_watching_thread_reaches_those_who_wait(make_group: Make) -> None:
    group = make_group()
    capture = group.add(CaptureConfig(source="http://127.0.0.1:9/x"))
    capture.supervisor.tick = lambda now_s: 1 / 0
    # `started` may come first.
    with pytest.raises(RuntimeError, match="has failed"):
        list(iter(lambda: group.take(40.0), None))
    with pytest.raises(RuntimeError, match="closed"):
        group.add(CaptureConfig(source="0"))


def test_an_error_in_the_watching_thread_leaves_no_process(make_mjpeg: Make, make_group: Make) -> None:
    group = make_group()
    capture = group.add(CaptureConfig(source=make_mjpeg().url))
    while not isinstance(group.take(40.0), Frame):
        pass
    process = capture.supervisor.process
    capture.supervisor.on_control = lambda now_s: 1 / 0
    capture.supervisor.tick = lambda now_s: 1 / 0
    with pytest.raises(RuntimeError, match="has failed"):
        list(iter(lambda: group.take(40.0), None))
    group.close()
    assert capture.supervisor.process is None
    assert process.poll() == -signal.SIGKILL
    assert process.control.fileno() == process.output_fd == -1
