"""Sources of other packages: their code runs in the capture process, where its faults harm nothing else."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerpn.errors import StreamOpenError
from edgerpn.runtime.frame import Frame
from edgerpn.runtime.run import SourceConfig
from edgerpn.runtime.sinks.record import json_line
from edgerpn.runtime.sources import CaptureConfig
from edgerpn.runtime.sources.spec import parse_source

Make = Callable[..., Any]

_PACKAGE = '''
import os
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np

from edgerpn.runtime.sources import CaptureConfig, CaptureFailedError, FrameSource

class Counter(FrameSource):
    """Frame i is grey of the value i; the query says what goes wrong."""

    def __init__(self, config: CaptureConfig):
        parts = urlsplit(config.source)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.is_live = parts.hostname != "recording"
        self.fps = 50.0 if query.get("does") != "gives nan" else float("nan")
        self.num_frames = 0 if self.is_live else 20
        self._size_wh = config.size_wh or (32, 16)
        self._does = query.get("does", "")
        self._marker = query.get("marker", "")
        self._index = -1
        if self._does == "locked":
            raise CaptureFailedError(f"{parts.hostname} is locked with {parts.password}", reason="unauthorised")
        if self._does == "refuses":
            raise ConnectionRefusedError("nobody there")
        if self._does == "is missing":
            raise FileNotFoundError("no such sensor")

    def read(self):
        self._index += 1
        if self.is_live:
            time.sleep(0.02)
        elif self._index == 20:
            return None
        if self._index == 5:
            self._misbehave()
        width, height = self._size_wh
        if self._does == "changes size" and self._index > 5:
            width = 2 * width
        # NaN with a rate of NaN.
        self.media_time_s = 100 + self._index / self.fps
        if self._does == "gives floats":
            return np.zeros((height, width, 3), np.float32)
        if self._does == "gives grey":
            return np.full((height, width), self._index, np.uint8)
        return np.full((height, width, 3), min(self._index, 255), np.uint8)

    def _misbehave(self):
        if self._does == "hangs":
            time.sleep(60)
        elif self._does == "raises":
            raise KeyError("exposure")
        elif self._does == "crashes":
            os.abort()
        elif self._does == "exits":
            sys.exit("out of film")

    def close(self):
        if self._marker:
            Path(self._marker).write_text(str(os.getpid()))
        raise RuntimeError("nobody cares any more")

def wrong(config):
    return object()
'''

_POINTS = """[edgerpn.sources]
count = counters:Counter
gone = counters:Gone
wrong = counters:wrong
rtsp = counters:Counter
"""


@pytest.fixture(autouse=True)
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs a package of plugins, as pip would."""
    site = tmp_path / "site"
    info = site / "counters-1.5.dist-info"
    info.mkdir(parents=True)
    (site / "counters.py").write_text(_PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counters\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(_POINTS)
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()


def test_a_plugins_url_is_a_live_source_with_a_clock() -> None:
    assert parse_source("COUNT://lab/1").kind == "plugin"
    assert SourceConfig(source="count://lab/1").is_live
    assert parse_source("count://lab/1").has_clock
    # A plugin cannot replace a built-in scheme.
    assert parse_source("rtsp://lab/1").kind == "url"
    with pytest.raises(StreamOpenError, match=r"unknown URL scheme 'amount'; known: csi, file, .*, count, gone, rtsp"):
        parse_source("amount://lab/1")
    assert CaptureConfig(source="count://me:hunter2@lab/1").label == "count://***@lab/1"


def test_a_plugins_frames_come_from_a_separate_process_with_its_times(play: Make) -> None:
    player = play("count://lab", size_wh=(40, 30))
    connected = player.event("connected", 20.0)
    assert connected.size_wh == (40, 30)
    assert connected.fps == 50
    assert connected.is_live
    assert connected.decoder == "counters:Counter of counters 1.5, for count:// URLs"
    frames = [player.frame(20.0)[0] for _ in range(5)]
    for frame in frames:
        assert (frame.image == min(frame.index, 255)).all()
        assert frame.media_time_s == pytest.approx(100 + frame.index / 50)
        assert frame.lag_ms is not None
    assert player.capture.stats.pid not in (None, os.getpid())
    assert "counters" not in sys.modules


def test_a_rate_and_times_that_are_no_numbers_count_as_unknown(play: Make) -> None:
    player = play("count://lab?does=gives nan")
    connected = player.event("connected", 20.0)
    assert connected.fps == 0
    json_line(connected)
    assert player.frame(20.0)[0].media_time_s is None


def test_a_recording_gives_every_frame_and_ends(play: Make) -> None:
    player = play("count://recording", slots=2)
    values = []
    while (item := player.capture.take(20.0)) is not None:
        if isinstance(item, Frame):
            values.append(int(item.image[0, 0, 0]))
        else:
            player.events.append(item)
        del item
    assert values == list(range(20))
    assert player.kinds() == ["started", "connected", "ended"]
    assert player.events[1].num_frames == 20


def test_grey_frames_and_new_sizes_are_taken(play: Make) -> None:
    grey, _ = play("count://lab?does=gives grey", name="grey").frame(20.0)
    assert grey.image.shape == (16, 32, 3)
    assert (grey.image == grey.index).all()
    player = play("count://lab?does=changes size", name="sizes")
    assert player.event("resized", 20.0).size_wh == (64, 16)
    assert player.frame(20.0)[0].image.shape == (16, 64, 3)


@pytest.mark.parametrize(
    ("does", "reason", "words"),
    [
        ("locked", "unauthorised", "lab is locked with"),
        ("refuses", "refused", "counters:Counter: ConnectionRefusedError: nobody there (counters.py:"),
        pytest.param("is missing", "not_found", "no such sensor", marks=pytest.mark.slow),
        pytest.param(
            "raises", "unknown", "counters:Counter: KeyError: 'exposure' (counters.py:", marks=pytest.mark.slow
        ),
        ("hangs", "timeout", "no frame for"),
    ],
)
def test_a_failure_is_reported_and_followed_by_a_reconnect(does: str, reason: str, words: str, play: Make) -> None:
    limits = {"gap_s": 0.4, "stall_s": 0.8} if does == "hangs" else {}
    player = play(f"count://me:hunter2@lab?does={does}", **limits)
    down = player.event("reconnecting", 30.0)
    assert (down.reason, words in down.message) == (reason, True)
    assert "hunter2" not in repr(player.events) + repr(player.capture.messages)
    assert player.event("reconnecting", 30.0).attempt >= 1


@pytest.mark.parametrize(
    ("does", "words"), [("crashes", "SIGABRT"), pytest.param("exits", "exit status 1", marks=pytest.mark.slow)]
)
def test_a_crash_of_a_plugin_is_an_event_and_the_frames_come_back(does: str, words: str, play: Make) -> None:
    player = play(f"count://lab?does={does}")
    error = player.event("error", 30.0)
    assert (error.reason, words in error.message) == ("crashed", True)
    player.event("connected", 30.0)


@pytest.mark.parametrize(
    ("source", "channels", "words"),
    [
        ("count://lab?does=gives floats", "auto", "uint8 (H, W, 3) or (H, W), got float32 (16, 32, 3)"),
        ("count://lab?does=gives floats", "bgrx", "uint8 (H, W, 3) or (H, W, 4) or (H, W), got float32"),
        ("gone://lab", "auto", "counters:Gone of another package does not import: AttributeError"),
        ("wrong://lab", "auto", "counters:wrong: expected a FrameSource of edgerpn.runtime.sources, got a object"),
    ],
)
def test_a_broken_plugin_ends_the_source(source: str, channels: str, words: str, play: Make) -> None:
    player = play(source, channels=channels)
    assert words in player.event("error", 30.0).message
    player.event("ended")
    assert player.capture.is_exhausted


def test_a_plugin_is_closed_at_the_end_and_killed_when_it_hangs(play: Make, tmp_path: Path, patience: Any) -> None:
    marker = tmp_path / "closed"
    player = play(f"count://lab?marker={marker}")
    player.frame(20.0)
    pid = player.capture.stats.pid
    player.capture.close()
    assert marker.read_text() == str(pid)
    stuck = play("count://lab?does=hangs", name="stuck", stall_s=30.0)
    stuck.until(lambda item: getattr(item, "index", 0) >= 4, 20.0)
    pid = stuck.capture.stats.pid
    stuck.capture.close()
    patience.wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_plugin_needs_no_opencv(play: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "site" / "cv2.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    frame, _ = play("count://lab").frame(20.0)
    assert np.array_equal(frame.image, np.full((16, 32, 3), frame.index))
