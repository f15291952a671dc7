"""File sources: which files open, their frames, and the messages of refusals."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgerpn.errors import StreamOpenError
from edgerpn.images.header import Exif
from edgerpn.runtime.frame import Event, Frame
from edgerpn.runtime.sources.file_sources import image_paths, open_source

Paint = Callable[..., npt.NDArray[np.uint8]]


def write_image(path: Path, height: int = 48, width: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))
    return path


def test_a_video_gives_every_frame_with_its_time(video_path: Path) -> None:
    before = time.time()
    source = open_source(video_path)
    assert (source.is_images, source.num_frames) == (False, 40)
    assert source.fps == pytest.approx(30000 / 1001, abs=1e-3)
    frames = list(source)
    assert [frame.index for frame in frames if isinstance(frame, Frame)] == list(range(40))
    first, last = frames[0], frames[-1]
    assert isinstance(first, Frame)
    assert isinstance(last, Frame)
    assert first.image.shape == (192, 320, 3)
    assert first.media_time_s == 0
    assert last.media_time_s == pytest.approx(39 * 1001 / 30000, abs=2e-3)
    assert before <= first.captured_at <= last.captured_at <= time.time()
    assert last.decode_ms > 0
    assert last.source == str(video_path)


def test_a_parameter_that_opencv_does_not_know_is_left_out(video_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "CAP_PROP_N_THREADS", 9999)
    assert len(list(open_source(video_path))) == 40


def test_frames_may_be_kept(video_path: Path) -> None:
    frames = [frame for frame in open_source(video_path) if isinstance(frame, Frame)]
    assert not np.array_equal(frames[0].image, frames[5].image)
    assert frames[0].image.base is None or frames[0].image.base is not frames[1].image.base


def test_a_video_that_is_cut_short_says_so(video_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (64, 48))
    for level in range(50):
        writer.write(np.full((48, 64, 3), 4 * level, np.uint8))
    writer.release()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    items = list(open_source(path))
    assert isinstance(items[0], Frame)
    assert isinstance(items[-1], Event)
    assert (items[-1].kind, items[-1].reason) == ("ended", "codec")
    assert "of 50 frames" in items[-1].message


def test_a_folder_gives_its_images_in_natural_order(tmp_path: Path) -> None:
    for name in ("img10.jpg", "img2.png", "IMG1.JPG", ".hidden.jpg"):
        write_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    source = open_source(tmp_path)
    assert source.is_images
    assert source.num_frames == 3
    assert [frame.path.name for frame in source if frame.path] == ["IMG1.JPG", "img2.png", "img10.jpg"]


def test_a_glob_reaches_into_folders(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "1.jpg")
    write_image(tmp_path / "b" / "2.jpg")
    frames = list(open_source(str(tmp_path / "**" / "*.jpg")))
    assert [frame.path.name for frame in frames if frame.path] == ["1.jpg", "2.jpg"]


def test_a_name_with_brackets_is_a_file_first(tmp_path: Path) -> None:
    path = write_image(tmp_path / "frame[1].png")
    assert open_source(path).num_frames == 1


def test_a_broken_image_in_a_folder_is_an_event_and_the_rest_follows(tmp_path: Path) -> None:
    write_image(tmp_path / "1.jpg")
    (tmp_path / "2.jpg").write_bytes(b"not a picture")
    (tmp_path / "3.jpg").write_bytes(b"")
    write_image(tmp_path / "4.jpg")
    items = list(open_source(tmp_path))
    assert [type(item) for item in items] == [Frame, Event, Event, Frame]
    assert isinstance(items[1], Event)
    assert isinstance(items[2], Event)
    assert "2.jpg: not an image that OpenCV can decode (13 bytes)" in items[1].message
    assert "3.jpg: the file is empty" in items[2].message
    assert isinstance(items[3], Frame)
    assert items[3].index == 3


def test_grey_and_transparent_images_become_bgr(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((8, 8), 7, np.uint8))
    cv2.imwrite(str(tmp_path / "alpha.png"), np.full((8, 8, 4), 7, np.uint8))
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((8, 8, 3), 7 * 256, np.uint16))
    for frame in open_source(tmp_path):
        assert isinstance(frame, Frame)
        assert frame.image.shape == (8, 8, 3)
        assert frame.image.dtype == np.uint8


def refused(spec: str | Path) -> str:
    with pytest.raises(StreamOpenError) as caught:
        list(open_source(spec))
    return str(caught.value)


def test_missing_sources_are_refused_by_name(tmp_path: Path) -> None:
    assert "no such file or folder" in refused(tmp_path / "absent.mp4")
    assert "matches no file" in refused(str(tmp_path / "*.jpg"))
    assert "no images in this folder" in refused(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    assert "matches 1 paths, but no image" in refused(str(tmp_path / "*.txt"))
    assert "got nothing" in refused(" ")


def test_files_that_are_no_video_or_image_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello " * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "broken.jpg").write_bytes(b"hello")
    assert "not a video that OpenCV can read" in refused(tmp_path / "text.mp4")
    assert "the file is empty" in refused(tmp_path / "empty.mp4")
    assert "broken.jpg: not an image that OpenCV can decode (5 bytes)" in refused(tmp_path / "broken.jpg")


@pytest.mark.parametrize("spec", ["0", "/dev/video87", "rtsp://user:hunter2@host/x", "videotestsrc ! appsink"])
def test_live_sources_are_not_files(spec: str) -> None:
    message = refused(spec)
    assert message.endswith("expected a file, a folder or a glob, got a live source")
    assert "hunter2" not in message


def test_a_pattern_that_the_shell_has_expanded_is_a_list_of_pictures(tmp_path: Path) -> None:
    paths = [str(tmp_path / "b.jpg"), str(tmp_path / "a.PNG")]
    assert image_paths(paths) == [Path(path) for path in paths]
    for sources in (paths[:1], [*paths, "c.mp4"], [*paths, "rtsp://host/snap.jpg"], [*paths, "x*.jpg"], []):
        assert image_paths(sources) == []


def test_pictures_of_every_format_are_frames_or_named_events(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jfif", "c.JPE", "d.jp2", "e.avif", "f.gif", "g"):
        kind = {"a.jpg": "JPEG", "b.jfif": "JPEG", "c.JPE": "JPEG", "d.jp2": "JPEG2000", "e.avif": "AVIF"}.get(name)
        Image.new("RGB", (64, 48), (90, 80, 70)).save(tmp_path / name, kind or ("GIF" if "." in name else "PNG"))
    (tmp_path / "h.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    (tmp_path / "._a.jpg").write_bytes(b"resource fork")
    (tmp_path / "notes").write_bytes(b"no picture")
    source = open_source(tmp_path)
    assert source.num_frames == 8
    items = list(source)
    for item, name in zip(items, ("a.jpg", "b.jfif", "c.JPE", "d.jp2", "e.avif", "f.gif", "g", "h.heic"), strict=True):
        assert item.path is not None
        assert item.path.name == name
        if cv2.haveImageReader(str(item.path)):
            assert isinstance(item, Frame)
            assert item.image.shape == (48, 64, 3)
        else:
            assert isinstance(item, Event)
            assert f"which OpenCV {cv2.__version__} does not decode here; convert it" in item.message
    assert isinstance(items[0], Frame)
    assert isinstance(items[-1], Event)
    assert "h.heic: HEIC, which OpenCV" in refused(tmp_path / "h.heic")
    assert open_source(tmp_path / "g").num_frames == 1


def test_a_damaged_picture_is_named_and_used(tmp_path: Path) -> None:
    pytest.importorskip("simplejpeg", reason="only cut files are found without it")
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    data = cv2.imencode(".jpg", noise)[1].tobytes()
    (tmp_path / "1.jpg").write_bytes(data)
    (tmp_path / "2.jpg").write_bytes(data[: len(data) * 3 // 4] + b"\xff\xd9")
    items = list(open_source(tmp_path))
    assert [item.kind if isinstance(item, Event) else item.index for item in items] == [0, "damaged", 1]
    assert isinstance(items[1], Event)
    assert "2.jpg: damaged (premature end of data segment); used as far as it decodes" in items[1].message
    # Whether OpenCV decodes a part of one without an end depends on its version.
    (tmp_path / "2.jpg").write_bytes(data[: len(data) * 3 // 4])
    event = list(open_source(tmp_path))[1]
    assert isinstance(event, Event)
    assert "truncated: the JPEG has no end marker" in event.message


def test_pictures_are_turned_by_their_exif_orientation_where_asked(tmp_path: Path) -> None:
    orientation = Image.Exif()
    orientation[0x112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "turned.jpg", exif=orientation)
    sizes: dict[str, tuple[int, ...]] = {}
    rules: tuple[Exif | None, ...] = (None, "ignore", "apply")
    for rule in rules:
        (frame,) = open_source(tmp_path / "turned.jpg", exif=rule)
        assert isinstance(frame, Frame)
        sizes[str(rule)] = frame.image.shape[:2]
    assert sizes == {"None": (48, 64), "ignore": (48, 64), "apply": (64, 48)}
