"""Frames of four channels: models that take them, and their way from a capture process to records and pictures."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgerpn.errors import InputError
from edgerpn.proposals import Proposals
from edgerpn.runtime import Model, load
from edgerpn.runtime.backends.preprocess import Preprocessor
from edgerpn.runtime.draw import Painter
from edgerpn.runtime.frame import Frame, Result
from edgerpn.runtime.run import SourceConfig, StreamRunner, StreamsConfig
from edgerpn.runtime.sinks.record import json_line
from edgerpn.runtime.sources import CaptureConfig, open_capture
from edgerpn.runtime.web.pictures import _shot
from tests.support.models import make_manifest

Image = npt.NDArray[np.uint8]
Paint = Callable[..., Image]
MakeModel = Callable[..., Path]

_PACKAGE = '''
from urllib.parse import urlsplit

import numpy as np

from edgerpn.runtime.sources import FrameSource

class Film(FrameSource):
    """Frames of a file, with a fourth channel where the settings have one."""

    is_live = False

    def __init__(self, config):
        self._frames = iter(np.load(urlsplit(config.source).path))
        self._rng = np.random.default_rng(0) if config.channels == "bgrx" else None

    def read(self):
        frame = next(self._frames, None)
        if frame is None or self._rng is None:
            return frame
        return np.dstack([frame, self._rng.integers(0, 256, frame.shape[:2], np.uint8)])
'''


def wide(image: Image) -> Image:
    """The picture with a fourth channel of noise."""
    noise = np.random.default_rng(0).integers(0, 256, image.shape[:-1], np.uint8)
    return np.concatenate([image, noise[..., None]], axis=-1)


def frame_of(image: Image) -> Frame:
    return Frame(
        image=image, source="door", index=3, media_time_s=None, captured_at=1.5, monotonic_s=2.5, decode_ms=1.0
    )


def assert_equal(found: Proposals, wanted: Proposals) -> None:
    np.testing.assert_array_equal(found.boxes, wanted.boxes)
    np.testing.assert_array_equal(found.scores, wanted.scores)


@pytest.fixture(params=[None, (192, 320)], ids=["letterboxed", "source"])
def models(request: pytest.FixtureRequest, make_model: MakeModel, tmp_path: Path) -> tuple[Model, Model]:
    """A model of three channels, and the same of four."""
    made = []
    for order in ("BGR", "BGRx"):
        (tmp_path / order).mkdir()
        path = make_model(tmp_path / order, batch=None, source_hw=request.param, color_order=order)
        made.append(load(path, threads=1))
    return made[0], made[1]


def test_a_model_of_four_channels_finds_the_same_in_pictures_of_three_and_four(
    models: tuple[Model, Model], paint: Paint
) -> None:
    pictures = [paint(box=(40 + 8 * i, 40, 120 + 8 * i, 120), count=1 + i) for i in range(3)]
    expected = [models[0](picture) for picture in pictures]
    assert [len(proposals) for proposals in expected] == [1, 2, 3]
    for picture, wanted in zip(pictures, expected, strict=True):
        assert_equal(models[1](picture), wanted)
        assert_equal(models[1](wide(picture)), wanted)
    mixed = [pictures[0], wide(pictures[1]), pictures[2]]
    for found, wanted in zip(models[1].batch(mixed), expected, strict=True):
        assert_equal(found, wanted)
    results = models[1].run_frames([frame_of(image) for image in mixed])
    for result, wanted in zip(results, expected, strict=True):
        assert isinstance(result, Result)
        assert_equal(result.proposals, wanted)


def test_a_model_of_three_channels_refuses_four_with_advice(models: tuple[Model, Model], paint: Paint) -> None:
    with pytest.raises(InputError, match=r"expected shape \(H, W, 3\), got \(192, 320, 4\)\. Drop the alpha channel"):
        models[0](wide(paint()))
    with pytest.raises(InputError, match=r"expected shape \(H, W, 3\), got \(192, 320, 2\)"):
        models[1](paint()[..., :2])


def test_a_picture_as_the_graph_takes_it_is_not_copied(paint: Paint) -> None:
    picture = wide(paint(192, 320))
    manifest = make_manifest(batch=1, source_hw=(192, 320), color_order="BGRx")
    assert np.shares_memory(Preprocessor(manifest).prepare(picture), picture)


def test_an_engine_of_four_channels(
    bench: Any, standin: ModuleType, make_engine: MakeModel, tmp_path: Path, painted: Image
) -> None:
    folders = [tmp_path / "three", tmp_path / "four"]
    for folder in folders:
        folder.mkdir()
    backend = bench.load(make_engine(folders[0]))
    wanted = backend.infer(painted)
    backend.close()
    backend = bench.load(make_engine(folders[1], color_order="BGRx"))
    frames = standin.aligned(wide(painted))
    for found in (backend.infer(frames), backend.infer_device(standin.OnGpu(bench.device, frames))):
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(InputError, match=r"expected shape \(N, 96, 160, 4\) with N >= 1, got \(9, 96, 160, 3\)"):
        backend.infer_device(standin.OnGpu(bench.device, painted))
    backend.close()


def test_records_and_pictures_are_those_of_three_channels(paint: Paint) -> None:
    picture = paint(48, 64, box=(5, 6, 30, 40))
    proposals = Proposals(np.array([[5.0, 6, 30, 40]]), np.array([0.875]))
    three, four = (
        Result(proposals=proposals, frame=frame_of(image), stage_ms={"inference": 1.0}, age_ms=2.0)
        for image in (picture, wide(picture))
    )
    np.testing.assert_array_equal(four.image, picture)
    assert three.image is picture
    assert json_line(four) == json_line(three)
    np.testing.assert_array_equal(Painter().paint(four), Painter().paint(three))
    for width_px in (None, 32):
        found, wanted = (_shot(result, max_width_px=width_px).image for result in (four, three))
        np.testing.assert_array_equal(found, wanted)
        assert not np.shares_memory(found, four.frame.image)


@pytest.fixture
def film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paint: Paint) -> tuple[str, list[Image]]:
    """The address of a source of another package, as pip would install it, and its frames."""
    site = tmp_path / "site"
    info = site / "films-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "films.py").write_text(_PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: films\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgerpn.sources]\nfilm = films:Film\n")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    frames = [paint(box=(40 + 8 * i, 40, 120 + 8 * i, 120), count=i % 4) for i in range(6)]
    np.save(tmp_path / "frames.npy", np.stack(frames))
    return f"film://tape{tmp_path / 'frames.npy'}", frames


@pytest.mark.parametrize(("place", "num_channels"), [(0, 3), (1, 4)])
def test_a_capture_process_delivers_the_channels_that_the_model_takes(
    place: int, num_channels: int, models: tuple[Model, Model], film: tuple[str, list[Image]]
) -> None:
    source, frames = film
    count = 0
    for result, frame in zip(models[place].stream(source), frames, strict=True):
        assert result.frame.image.shape == (192, 320, num_channels)
        np.testing.assert_array_equal(result.image, frame)
        assert_equal(result.proposals, models[0](frame))
        count += 1
    assert count == 6


def test_the_settings_of_a_source_decide_before_the_model(
    models: tuple[Model, Model], film: tuple[str, list[Image]]
) -> None:
    config = StreamsConfig(sources=(SourceConfig(source=film[0], name="film", channels="bgr"),))
    with StreamRunner(models[1], config) as runner:
        shapes = {item.frame.image.shape for item in runner if isinstance(item, Result)}
    assert shapes == {(192, 320, 3)}
    with open_capture(CaptureConfig(source=film[0], channels="bgrx")) as capture:
        while (item := capture.take(60.0)) is not None and not isinstance(item, Frame):
            pass
        assert item is not None
        assert item.image.shape == (192, 320, 4)
        assert not item.image.flags.writeable
        np.testing.assert_array_equal(item.bgr, film[1][0])
        del item


def test_unknown_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="channels: expected auto, bgr, bgrx, got 'rgb'"):
        CaptureConfig(source="0", channels="rgb")  # type: ignore[arg-type]
