"""MOTChallenge's files of tracks."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgerpn.errors import SinkError
from edgerpn.runtime.frame import Event, Result, Track
from edgerpn.runtime.sinks.mot import MotSink

MakeResult = Callable[..., Result]


def with_track(result: Result, track_id: int, *, is_confirmed: bool = True) -> Result:
    return dataclasses.replace(
        result, tracks=(Track(track_id=track_id, age_s=0.0, dwell_s=0.0, is_confirmed=is_confirmed),)
    )


def test_frames_and_pixels_count_from_one_and_only_confirmed_tracks_have_lines(
    make_result: MakeResult, tmp_path: Path
) -> None:
    sink = MotSink(str(tmp_path / "new" / "a.txt"))
    sink.write(make_result(0))
    sink.write(with_track(make_result(1), 4, is_confirmed=False))
    sink.write(with_track(make_result(2), 4))
    sink.close()
    sink.close()
    assert (tmp_path / "new" / "a.txt").read_text() == "3,4,2.00,3.00,29.00,38.00,0.8750,-1,-1,-1\n"


def test_a_folder_has_a_file_for_each_source(make_result: MakeResult, tmp_path: Path) -> None:
    sink = MotSink(str(tmp_path / "mot"))
    for source in ("yard/door", "yard_door", "yard/door"):
        sink.write(with_track(make_result(0, source=source), 1))
    sink.close()
    lines = {path.name: path.read_text().count("\n") for path in (tmp_path / "mot").iterdir()}
    assert lines == {"yard_door.txt": 2, "yard_door-2.txt": 1}


def test_sources_with_long_addresses_have_files_of_their_own(make_result: MakeResult, tmp_path: Path) -> None:
    sink = MotSink(str(tmp_path))
    for end in "ab":
        sink.write(with_track(make_result(0, source=f"rtsp://cam/live?token={'x' * 250}{end}"), 1))
    sink.close()
    assert [path.read_text().count("\n") for path in tmp_path.iterdir()] == [1, 1]


def test_a_source_that_ended_leaves_no_open_file_and_continues_it_when_it_comes_back(
    make_result: MakeResult, make_event: Callable[..., Event], tmp_path: Path
) -> None:
    sink = MotSink(str(tmp_path), is_live=True)
    for index in range(2):
        for source in ("door", "yard"):
            sink.write(with_track(make_result(index, source=source), 1))
        sink.event(make_event("stalled", source="yard"))
        sink.event(make_event("ended", source="door"))
        opened = {os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")}
        assert {Path(path).name for path in opened if path.startswith(str(tmp_path))} == {"yard.txt"}
    sink.close()
    lines = {path.name: path.read_text().count("\n") for path in tmp_path.iterdir()}
    assert lines == {"door.txt": 2, "yard.txt": 2}


def test_a_source_that_was_removed_and_is_added_again_has_a_new_file(
    make_result: MakeResult, make_event: Callable[..., Event], tmp_path: Path
) -> None:
    sink = MotSink(str(tmp_path), is_live=True)
    for track_id in (4, 7):
        sink.write(with_track(make_result(0, source="door"), track_id))
        sink.event(dataclasses.replace(make_event("ended", source="door"), reason="removed"))
    sink.close()
    first, second = ((tmp_path / name).read_text().split(",")[:2] for name in ("door.txt", "door-2.txt"))
    assert (first, second) == (["1", "4"], ["1", "7"])


def test_the_first_result_replaces_an_earlier_file_and_a_live_run_keeps_it_in_a_folder(
    make_result: MakeResult, tmp_path: Path
) -> None:
    earlier = tmp_path / "door.txt"
    earlier.write_text("old\n")
    sink = MotSink(str(tmp_path), is_live=True)
    sink.write(with_track(make_result(0, source="door"), 1))
    sink.close()
    assert earlier.read_text() == "old\n"
    assert (tmp_path / "door-2.txt").read_text().count("\n") == 1
    sink = MotSink(str(earlier))
    assert earlier.read_text() == "old\n"
    sink.write(make_result(0))
    sink.close()
    assert earlier.read_text() == ""


def test_a_file_that_cannot_be_written_shows_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(SinkError, match="cannot be opened for writing"):
        MotSink(str(tmp_path / "a.txt"))
