"""Odd and damaged films: each gives its frames, says what is missing, or is refused by name."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgerpn.errors import StreamOpenError
from edgerpn.runtime.frame import Event, Frame
from edgerpn.runtime.sources import CaptureConfig
from edgerpn.runtime.sources.child import open_reader
from edgerpn.runtime.sources.file_sources import open_source

Make = Callable[..., Any]

H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "5")
FFV1 = ("-c:v", "ffv1")
ODD: dict[str, tuple[str, ...]] = {
    "stream.h264": H264,
    "whole_colours.mp4": (*H264, "-pix_fmt", "yuv444p"),
    "wide_pixels.mp4": (*H264, "-aspect", "4:1"),
    "late.ts": (*H264, "-output_ts_offset", "5000"),
    "fields.ts": ("-c:v", "mpeg2video", "-flags", "+ildct+ilme"),
    "odd_sides.mkv": (*FFV1, "-vf", "scale=33:17"),
    "tiny.mkv": (*FFV1, "-vf", "scale=2:2"),
    "grey.mkv": (*FFV1, "-pix_fmt", "gray"),
    "deep_grey.mkv": (*FFV1, "-pix_fmt", "gray16le"),
    "deep.mkv": (*FFV1, "-pix_fmt", "yuv420p10le"),
    "transparent.mov": ("-c:v", "png", "-pix_fmt", "rgba"),
    "palette.gif": (),
}
OTHERS: dict[str, tuple[str, ...]] = {
    "one.mp4": (*H264, "-frames:v", "1"),
    # Matroska keeps the times and states no count.
    "thinned.mkv": (*H264, "-vf", "select=not(mod(n\\,3))"),
    "screen.mkv": (*H264, "-vf", "select=lt(n\\,3)+eq(n\\,6)+eq(n\\,11)+eq(n\\,13)+eq(n\\,19)"),
    "large.ts": (*H264, "-vf", "scale=128:96"),
    "index_first.mp4": (*H264, "-movflags", "+faststart"),
    "clip.mp4": H264,
    "clip.mkv": H264,
    "clip.ts": H264,
}
SIZES = {"odd_sides.mkv": (17, 33), "tiny.mkv": (2, 2)}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes all films, ten pictures a second for two seconds, and one of sound."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("the program ffmpeg is not installed")
    folder = tmp_path_factory.mktemp("films")
    outputs: list[str] = []
    for name, words in (ODD | OTHERS).items():
        outputs += ["-map", "0:v", *words, str(folder / name)]
    inputs = ["-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=2", "-f", "lavfi", "-i", "sine=duration=1"]
    sound = ["-map", "1:a", str(folder / "sound.mp4")]
    subprocess.run(["ffmpeg", "-loglevel", "error", *inputs, *outputs, *sound], check=True)
    return folder


def play(path: Path) -> tuple[list[Frame], list[Event]]:
    """Reads a film as a run does."""
    items = list(open_source(path))
    frames = [item for item in items if isinstance(item, Frame)]
    assert all(frame.image.dtype == np.uint8 and frame.image.ndim == 3 for frame in frames)
    return frames, [item for item in items if isinstance(item, Event)]


@pytest.mark.parametrize("name", ODD)
def test_odd_films_give_every_frame(name: str, films: Path) -> None:
    frames, events = play(films / name)
    assert [frame.index for frame in frames] == list(range(20))
    assert {frame.image.shape for frame in frames} == {(*SIZES.get(name, (48, 64)), 3)}
    assert frames[0].media_time_s == 0
    assert not events


@pytest.mark.parametrize(("name", "count"), [("thinned.mkv", 7), ("screen.mkv", 7)])
@pytest.mark.parametrize("policy", ["auto", "every"])
def test_a_film_of_varying_rate_is_not_damaged(
    name: str, count: int, policy: str, films: Path, make_group: Make
) -> None:
    if policy == "auto":
        frames, events = play(films / name)
        assert (len(frames), events) == (count, [])
        return
    group = make_group()
    group.add(CaptureConfig(source=str(films / name), policy="every"))
    items = [item if isinstance(item, Event) else item.index for item in iter(lambda: group.take(40.0), None)]
    assert [item for item in items if isinstance(item, int)] == list(range(count))
    assert isinstance(items[-1], Event)
    assert (items[-1].kind, items[-1].reason) == ("ended", "end_of_stream")


def test_a_film_of_one_frame(films: Path) -> None:
    frames, events = play(films / "one.mp4")
    assert (len(frames), events) == (1, [])


def test_a_film_that_changes_its_size_keeps_the_first(films: Path, tmp_path: Path) -> None:
    (tmp_path / "both.ts").write_bytes((films / "clip.ts").read_bytes() + (films / "large.ts").read_bytes())
    frames, _ = play(tmp_path / "both.ts")
    assert len(frames) == 40
    assert {frame.image.shape for frame in frames} == {(48, 64, 3)}


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def with_hole(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(600) + data[middle + 600 :]


def with_noise(data: bytes) -> bytes:
    middle, noise = len(data) // 2, np.random.default_rng(3).bytes(800)
    return data[:middle] + noise + data[middle + 800 :]


@pytest.mark.parametrize(
    ("name", "damage"),
    [("index_first.mp4", cut), ("clip.mkv", cut), ("clip.mkv", with_hole), ("clip.ts", with_noise)],
)
def test_a_damaged_film_gives_what_is_left_and_says_so(
    name: str, damage: Callable[[bytes], bytes], films: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(damage((films / name).read_bytes()))
    frames, events = play(tmp_path / name)
    assert 5 <= len(frames) < 20
    (event,) = events
    assert (event.kind, event.reason) == ("ended", "codec")
    assert event.message == (
        f"{tmp_path / name}: ended after {len(frames)} of 20 frames; the file is damaged or cut short"
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "a file that was cut short"),
        (lambda data: bytes(64) + data[64:], "not a video that OpenCV can read"),
        (lambda data: data[:40], "not a video that OpenCV can read"),
        (lambda data: b"", "the file is empty"),
    ],
)
def test_a_film_without_its_head_or_index_is_refused_by_name(
    damage: Callable[[bytes], bytes], message: str, films: Path, tmp_path: Path
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(damage((films / "clip.mp4").read_bytes()))
    with pytest.raises(StreamOpenError, match=f"clip.mp4: .*{message}"):
        play(path)


def test_sound_alone_is_not_a_video(films: Path) -> None:
    with pytest.raises(StreamOpenError, match="no video in it"):
        play(films / "sound.mp4")


def rotate(path: Path, degrees: int) -> None:
    """Writes the rotation of a phone's film into the head of its track."""
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    turned = struct.pack(">9i", cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30)
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    data = path.read_bytes()
    place = data.index(upright, data.index(b"tkhd"))
    path.write_bytes(data[:place] + turned + data[place + 36 :])


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_rotated_film_is_upright_in_every_decoder(degrees: int, tmp_path: Path) -> None:
    path = tmp_path / "phone.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 64))
    assert writer.isOpened()
    picture = np.zeros((64, 96, 3), np.uint8)
    # The top left is white.
    picture[:32, :48] = 255
    for _ in range(5):
        writer.write(picture)
    writer.release()
    rotate(path, degrees)
    shape = (64, 96, 3) if degrees == 180 else (96, 64, 3)
    # Clockwise.
    corner = {90: (0, -1), 180: (-1, -1), 270: (-1, 0)}[degrees]
    images = [play(path)[0][0].image]
    for decoder in ("ffmpeg", "ffmpeg-process"):
        if decoder == "ffmpeg-process" and shutil.which("ffmpeg") is None:
            continue
        reader = open_reader(CaptureConfig(source=str(path), decoder=decoder), cv2)
        assert reader.grab()
        image = reader.retrieve(None)
        assert image is not None
        images.append(image)
        reader.close()
    for image in images:
        assert image.shape == shape
        bright = {place: int(image[place].mean()) for place in ((0, 0), (0, -1), (-1, 0), (-1, -1))}
        assert max(bright, key=lambda place: bright[place]) == corner
        assert bright[corner] > 200
