"""Pictures that hardware makes smaller for the network: everything that is written stays in pixels of the camera."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgerpn.letterbox import letterbox
from edgerpn.runtime import Model, load
from edgerpn.runtime.frame import Event, Frame, Result, Source
from edgerpn.runtime.run import SourceConfig, StreamRunner, StreamsConfig
from edgerpn.runtime.run.session import run_streams
from edgerpn.runtime.sinks import OutputConfig, QueuedSink
from edgerpn.runtime.sinks.mot import MotSink
from edgerpn.runtime.sinks.record import event_record, frame_record
from edgerpn.runtime.sources.file_sources import open_source
from edgerpn.runtime.tracking.config import TrackConfig
from edgerpn.runtime.zones import ZoneConfig
from tests.support.models import NETWORK_HW

OF_TIME = {"captured_at", "age_ms", "stage_ms", "happened_at"}


class HardwareSource:
    """A film whose pictures a Jetson would have scaled, by the rule of the host."""

    is_images = False

    def __init__(self, source: Source) -> None:
        self._source = source
        self.name, self.fps, self.num_frames = source.name, source.fps, source.num_frames

    def __iter__(self) -> Iterator[Frame | Event]:
        for item in self._source:
            if isinstance(item, Frame):
                height, width = letterbox(item.size_hw, NETWORK_HW).content_hw
                small = np.asarray(cv2.resize(item.image, (width, height)), np.uint8)
                yield dataclasses.replace(item, image=small, camera_hw=item.size_hw)
            else:
                yield item

    def close(self) -> None:
        self._source.close()


def lines_of(model: Model, config: StreamsConfig, source: Source) -> tuple[list[dict[str, Any]], Any]:
    """Returns the records of a run without its times, and the size of the source in its figures."""
    with StreamRunner(model, config, opened={"film": source}) as runner:
        records = [frame_record(item) if isinstance(item, Result) else event_record(item) for item in runner]
        size_wh = runner.stats()["film"].size_wh
    return [{key: value for key, value in record.items() if key not in OF_TIME} for record in records], size_wh


def test_records_zones_tracks_and_figures_are_those_of_the_whole_pictures(model: Model, video_path: Path) -> None:
    zone = ZoneConfig(name="left", points=((0, 100), (80, 100), (80, 140), (0, 140)))
    mask = ((160, 0), (320, 0), (320, 192), (160, 192))
    film = SourceConfig(source=str(video_path), name="film", zones=(zone,), masks=(mask,), zones_wh=(320, 192))
    config = StreamsConfig(sources=(film,), track=TrackConfig())
    whole = open_source(str(video_path), name="film")
    expected, size_wh = lines_of(model, config, whole)
    found, found_wh = lines_of(model, config, HardwareSource(open_source(str(video_path), name="film")))
    assert found == expected
    assert found_wh == size_wh == (320, 192)
    assert {record["event"] for record in found if record["type"] == "event"} >= {"appeared", "left_zone", "left"}


_PACKAGE = """
import numpy as np
from edgerpn.runtime.sources import FrameSource

class Sized(FrameSource):
    def __init__(self, config):
        self._hw = config.network_hw or (20, 30)
        self._left = 2

    def read(self):
        self._left -= 1
        return np.zeros((*self._hw, 3), np.uint8) if self._left >= 0 else None
"""


class Shapes:
    """A sink that notes the sizes of pictures."""

    target = ""

    def __init__(self, *, takes_pictures: bool) -> None:
        self.takes_pictures = takes_pictures
        self.found: set[tuple[int, ...]] = set()

    def write(self, result: Result) -> None:
        self.found.add(result.frame.image.shape[:2])

    def event(self, event: Event) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def sized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StreamsConfig:
    """A run of a source of another package, whose frames have the size that the run wants."""
    info = tmp_path / "site" / "sized-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "sized.py").write_text(_PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sized\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgerpn.sources]\nsized = sized:Sized\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    return StreamsConfig(sources=(SourceConfig(source="sized://lab", name="lab"),))


def test_captures_learn_the_size_of_the_network_where_nobody_looks_at_pictures(
    sized: StreamsConfig, model: Model, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    for takes_pictures, expected in ((False, NETWORK_HW), (True, (20, 30))):
        shapes = Shapes(takes_pictures=takes_pictures)
        tracks = QueuedSink(MotSink(str(tmp_path / "a.txt")), OutputConfig(), kind="mot", is_live=True)
        run_streams(model, sized, [shapes, tracks], max_frames=1)
        assert shapes.found == {expected}
    with load(make_model(tmp_path, source_hw=(20, 30)), threads=1) as fixed:
        shapes = Shapes(takes_pictures=False)
        run_streams(fixed, sized, [shapes], max_frames=1)
        assert shapes.found == {(20, 30)}


def test_the_size_of_the_network_is_no_setting_of_a_source() -> None:
    with pytest.raises(ValueError, match="network_hw: expected no value; the run sets it, got"):
        SourceConfig(source="0", network_hw=(384, 640))
