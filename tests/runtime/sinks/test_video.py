"""Video in segments: every file whole, the clock kept, a full disk survived."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgerpn.errors import SinkError
from edgerpn.runtime.frame import Result
from edgerpn.runtime.sinks import NotDeliveredError, VideoConfig
from edgerpn.runtime.sinks.video import VideoSegmentsSink

MakeResult = Callable[..., Result]


def videos(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def levels(path: Path) -> list[int]:
    """Grey level of the last row of every picture, where no box is drawn."""
    capture = cv2.VideoCapture(str(path))
    found = []
    while (picture := capture.read()[1]) is not None:
        found.append(round(float(np.mean(picture[-4:, -20:]))))
    return found


def rate(path: Path) -> float:
    return float(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS))


def opened(folder: Path, *, is_live: bool, **settings: Any) -> VideoSegmentsSink:
    settings = {"min_free_mb": 0.0, "suffix": ".avi", **settings}
    return VideoSegmentsSink(VideoConfig(folder=str(folder), **settings), is_live=is_live)


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_every_picture_of_a_file_is_there_once_at_its_own_rate(
    make_result: MakeResult, tmp_path: Path, suffix: str
) -> None:
    sink = opened(tmp_path, is_live=False, suffix=suffix)
    for index in range(12):
        sink.write(make_result(index, media_time_s=index * 1001 / 30000, level=20 * index))
    assert all(path.name.startswith(".") for path in videos(tmp_path))
    sink.close()
    sink.close()
    (path,) = videos(tmp_path)
    assert path.name == f"door-20231114T221320.000Z{suffix}"
    assert rate(path) == pytest.approx(30000 / 1001, abs=0.01)
    assert levels(path) == pytest.approx([20 * index for index in range(12)], abs=6)


def test_a_single_picture_is_a_video_too(make_result: MakeResult, tmp_path: Path) -> None:
    sink = opened(tmp_path, is_live=False)
    sink.write(make_result(0))
    sink.close()
    assert [len(levels(path)) for path in videos(tmp_path)] == [1]


def test_files_have_the_configured_length_and_hold_everything(make_result: MakeResult, tmp_path: Path) -> None:
    sink = opened(tmp_path, is_live=False, fps=10.0, minutes=0.5 / 60)
    for index in range(23):
        sink.write(make_result(index, level=10 * index))
    sink.close()
    found = [levels(path) for path in videos(tmp_path)]
    assert [len(one) for one in found] == [5, 5, 5, 5, 3]
    assert [level for one in found for level in one] == pytest.approx([10 * index for index in range(23)], abs=6)


def test_a_file_ends_when_it_is_large(make_result: MakeResult, tmp_path: Path) -> None:
    sink = opened(tmp_path, is_live=False, fps=10.0, max_mb=0.3)
    noise = np.random.default_rng(0).integers(0, 255, (192, 256, 3), np.uint8)
    for index in range(50):
        result = make_result(index, height=192, width=256)
        result.image[:] = noise
        sink.write(result)
    sink.close()
    paths = videos(tmp_path)
    assert len(paths) >= 3
    assert sum(len(levels(path)) for path in paths) == 50
    assert all(path.stat().st_size < 600_000 for path in paths)


def test_a_live_video_runs_by_the_clock(make_result: MakeResult, tmp_path: Path) -> None:
    sink = opened(tmp_path, is_live=True, fps=10.0)
    # A picture that lasts, then three within one tenth of a second, then a steady rate.
    for number, (at_s, level) in enumerate([(0.0, 0), (0.5, 80), (0.52, 250), (0.54, 250), (0.6, 160), (0.7, 200)]):
        sink.write(make_result(number, at_s=100 + at_s, level=level))
    sink.close()
    (path,) = videos(tmp_path)
    assert rate(path) == 10.0
    assert levels(path) == pytest.approx([0, 0, 0, 0, 0, 80, 160, 200], abs=6)


def test_a_gap_of_a_live_source_begins_a_new_file_named_by_its_time(make_result: MakeResult, tmp_path: Path) -> None:
    sink = opened(tmp_path, is_live=True, fps=10.0, gap_s=2.0)
    for at_s in (0.0, 0.1, 0.2, 5.0, 5.1):
        sink.write(make_result(0, at_s=at_s))
    sink.close()
    assert [(path.name, len(levels(path))) for path in videos(tmp_path)] == [
        ("door-20231114T221320.000Z.avi", 3), ("door-20231114T221325.000Z.avi", 2),
    ]  # fmt: skip


def test_every_source_has_its_own_files_and_ends_on_its_own(
    make_result: MakeResult, make_event: Any, tmp_path: Path
) -> None:
    sink = opened(tmp_path, is_live=False, fps=10.0)
    for index in range(4):
        for source in ("rtsp://***@cam/1", "rtsp:/***@cam/1", "../yard"):
            sink.write(make_result(index, source=source))
    sink.event(make_event("ended", source="../yard"))
    assert [path.name for path in videos(tmp_path) if not path.name.startswith(".")] == [
        "yard-20231114T221320.000Z.avi"
    ]
    sink.close()
    assert [path.name.rpartition("-")[0] for path in videos(tmp_path)] == ["rtsp_cam_1-2", "rtsp_cam_1", "yard"]
    assert all(len(levels(path)) == 4 for path in videos(tmp_path))


def test_a_source_that_was_removed_is_forgotten_with_its_name(
    make_result: MakeResult, make_event: Any, tmp_path: Path
) -> None:
    sink = opened(tmp_path, is_live=True, fps=10.0)
    for number, source in enumerate(("cam/1", "cam:1", "cam/1")):
        sink.write(make_result(0, at_s=float(number), source=source))
        sink.event(dataclasses.replace(make_event("ended", source=source), reason="removed"))
    sink.close()
    # All three had the same free name, one after the other.
    assert [path.name for path in videos(tmp_path)] == [f"cam_1-20231114T22132{second}.000Z.avi" for second in range(3)]


def test_sources_with_long_addresses_have_files_of_their_own(make_result: MakeResult, tmp_path: Path) -> None:
    sink = opened(tmp_path, is_live=True, fps=10.0)
    for end in "ab":
        sink.write(make_result(0, at_s=0.0, source=f"rtsp://cam/live?token={'x' * 250}{end}"))
    sink.close()
    assert [len(levels(path)) for path in videos(tmp_path)] == [1, 1]


def test_another_size_begins_a_new_file(make_result: MakeResult, tmp_path: Path) -> None:
    sink = opened(tmp_path, is_live=False, fps=10.0)
    for index, width in enumerate((64, 64, 80, 80, 80, 64)):
        sink.write(make_result(index, width=width))
    sink.close()
    assert [len(levels(path)) for path in videos(tmp_path)] == [2, 3, 1]


def test_remains_of_a_killed_run_are_removed_and_nothing_else(tmp_path: Path) -> None:
    remains = tmp_path / ".door-20231114T221320.000Z.0a1b2c3d.avi"
    others = [tmp_path / name for name in (".hidden.avi", "door-20231114T221320.000Z.avi", ".a-b.0a1b2c3d.avi")]
    for path in (remains, *others):
        path.write_bytes(b"x")
    opened(tmp_path, is_live=True).close()
    assert videos(tmp_path) == sorted(others)


def test_a_second_run_keeps_the_files_that_the_first_is_writing(make_result: MakeResult, tmp_path: Path) -> None:
    first = opened(tmp_path, is_live=True, fps=10.0)
    first.write(make_result(0, at_s=0.0))
    second = opened(tmp_path, is_live=True, fps=10.0)
    second.write(make_result(0, at_s=0.0, source="yard"))
    first.write(make_result(1, at_s=0.1))
    first.close()
    second.close()
    assert [(path.name.partition("-")[0], len(levels(path))) for path in videos(tmp_path)] == [("door", 2), ("yard", 1)]


def test_with_too_little_space_the_file_is_finished_and_pictures_wait(
    make_result: MakeResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = opened(tmp_path, is_live=False, fps=10.0)
    for index in range(10):
        sink.write(make_result(index))
    sink._series["door"]._config = VideoConfig(folder=str(tmp_path), min_free_mb=1e12, suffix=".avi")
    with pytest.raises(NotDeliveredError, match=r"MB are free, less than min_free_mb = 1e\+12"):
        sink.write(make_result(10))
    (path,) = videos(tmp_path)
    assert len(levels(path)) == 10
    sink.close()


_FULL_DISK = """
import json, sys, time
from pathlib import Path
import cv2
import numpy as np
from edgerpn.proposals import Proposals
from edgerpn.runtime.frame import Frame, Result
from edgerpn.runtime.sinks import open_sinks, read_outputs

folder = Path(sys.argv[1])
noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
boxes = Proposals(np.array([[1, 2, 30, 40]]), np.array([0.875]))
table = {"kind": "video", "folder": str(folder), "suffix": ".avi", "fps": 25.0, "min_free_mb": float(sys.argv[2]),
         "queue": 200, "on_error": "continue", "minutes": 1 / 60}
(sink,) = open_sinks(read_outputs([table], source="test"), is_live=True)
filler = folder / "filler"
filler.write_bytes(b"0" * 11_200_000)

def feed(start, stop):
    for index in range(start, stop):
        time.sleep(0.002)
        now = 100 + index / 25
        frame = Frame(image=noise, index=index, media_time_s=None, captured_at=now, monotonic_s=now, source="door",
                      decode_ms=1.0)
        sink.write(Result(proposals=boxes, frame=frame, stage_ms={}))

feed(0, 60)
deadline = time.monotonic() + 40
while not sink.stats().errors and time.monotonic() < deadline:
    time.sleep(0.01)
during = sink.stats()
filler.unlink()
feed(100, 160)
sink.close()
counts = []
for path in sorted(folder.iterdir()):
    capture = cv2.VideoCapture(str(path))
    counts.append([path.name.startswith("."), sum(1 for _ in iter(lambda: capture.read()[0], False))])
print(json.dumps({"error": during.last_error, "counts": counts, "dropped": sink.stats().dropped}))
"""


@pytest.mark.parametrize("min_free_mb", [0.7, 0.0])
def test_a_full_disk_leaves_whole_files_and_is_survived(tmp_path: Path, min_free_mb: float) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=12m tmpfs "$0" && exec "$@"', str(folder)]
    if sys.platform != "linux" or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs Linux with user namespaces")
    done = subprocess.run(
        [*mount, sys.executable, "-c", _FULL_DISK, str(folder), str(min_free_mb)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert ("MB are free" in told["error"]) == bool(min_free_mb), told
    assert min_free_mb or "is the disk full?" in told["error"], told
    num_kept = sum(count for _, count in told["counts"])
    assert num_kept == 120 if min_free_mb else 60 <= num_kept < 120, told
    assert all(not is_hidden and count > 0 for is_hidden, count in told["counts"]), told


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(SinkError, match="cannot be created"):
        opened(tmp_path / "a" / "b", is_live=True)
    assert os.listdir(tmp_path) == ["a"]
