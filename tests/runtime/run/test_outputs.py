"""The outputs of a run: their layout by the kinds of the sources, and what they must not overwrite."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgerpn.errors import ConfigError
from edgerpn.proposals import Proposals
from edgerpn.runtime.frame import Event, Frame, Result, Source
from edgerpn.runtime.run import SourceConfig, StreamsConfig
from edgerpn.runtime.run.http_config import HttpConfig
from edgerpn.runtime.run.outputs import OutputFlags, PictureFolder, Windows, check_outputs, open_outputs
from edgerpn.runtime.sinks import close_sinks, read_outputs
from edgerpn.runtime.sources.file_sources import open_source
from edgerpn.runtime.tracking.config import TrackConfig

Make = Callable[..., Any]

LIVE = SourceConfig(source="rtsp://camera/stream", name="door")
NAMED = {
    "kind": "classify", "vectors": "embeddings", "labels": "a.npz", "to": {"kind": "jsonl", "path": "a.jsonl"}
}  # fmt: skip


def result(source: str, index: int = 0, *, path: Path | None = None) -> Result:
    frame = Frame(
        image=np.full((48, 64, 3), 90, np.uint8), source=source, index=index, media_time_s=index / 25, path=path,
        captured_at=time.time(), monotonic_s=time.monotonic(), decode_ms=0.0,
    )  # fmt: skip
    empty = Proposals(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    return Result(proposals=empty, frame=frame, stage_ms={"inference": 1.0})


def run_of(*sources: SourceConfig) -> tuple[StreamsConfig, dict[str, Source]]:
    """A run, and its files, opened."""
    opened = {one.label: open_source(one.source, name=one.label) for one in sources if one.is_read_here}
    return StreamsConfig(sources=sources), opened


def test_each_kind_of_source_has_its_own_kind_of_file(make_clip: Make, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    cv2.imwrite(str(images / "a.png"), np.zeros((48, 64, 3), np.uint8))
    clip = SourceConfig(source=str(make_clip(3)))
    config, opened = run_of(clip, SourceConfig(source=str(images), name="images"), LIVE)
    folder = PictureFolder(str(tmp_path / "out"), config, opened, top=5)
    assert folder.target == str(tmp_path / "out")
    for index in range(3):
        folder.write(result(clip.label, index))
    folder.write(result("images", path=images / "a.png"))
    folder.write(result("door"))
    folder.event(Event(kind="ended", source="door", message="door: ended"))
    folder.close()
    names = sorted(os.listdir(tmp_path / "out"))
    assert names[:2] == ["a.png", "clip.mp4"]
    assert re.fullmatch(r"door-\d{8}T\d{6}\.\d{3}Z\.mp4", names[2])
    assert len(names) == 3
    # The rate that the file states.
    assert cv2.VideoCapture(str(tmp_path / "out" / "clip.mp4")).get(cv2.CAP_PROP_FPS) == 25


def test_the_video_file_of_a_live_source_has_the_rate_that_it_states(tmp_path: Path) -> None:
    flags = OutputFlags(video=str(tmp_path / "a.mp4"))
    (sink,) = open_outputs(flags, (), StreamsConfig(sources=(LIVE,)), {})
    sink.event(Event(kind="connected", source="door", message="door: connected", fps=12.5))
    for index in range(3):
        sink.write(result("door", index))
    sink.close()
    assert cv2.VideoCapture(str(tmp_path / "a.mp4")).get(cv2.CAP_PROP_FPS) == 12.5


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"video": "a.webm"}, r"cannot write video as '\.webm'; known: \.mp4, \.avi, or a folder"),
        ({"output": "model.onnx"}, "this is a file, expected a folder"),
        ({"jsonl": "model.json"}, "is an input of the run"),
        ({"jsonl": "."}, "this is a folder, expected the name of a file"),
        ({"output": "x", "jsonl": "x/proposals.jsonl"}, "given for two outputs"),
    ],
)
def test_outputs_that_cannot_be_are_refused_before_the_run(
    flags: dict[str, Any], problem: str, make_clip: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").write_bytes(b"")
    config, opened = run_of(SourceConfig(source=str(make_clip(3))))
    with pytest.raises(ConfigError, match=problem):
        check_outputs(OutputFlags(**flags), (), "model.onnx", config, opened)


@pytest.mark.parametrize(
    ("flags", "tables"),
    [
        ({"jsonl": "a.jsonl"}, [{"kind": "jsonl", "path": "x/../a.jsonl"}]),
        ({"output": "x"}, [{"kind": "jsonl", "path": "x/proposals.jsonl"}]),
        ({}, [{"kind": "jsonl", "path": "a.jsonl"}, {"kind": "jsonl", "path": "a.jsonl"}]),
        ({}, [NAMED, {"kind": "jsonl", "path": "a.jsonl"}]),
        ({"output": "x"}, [{"kind": "video", "folder": "x"}]),
        ({"output": "x", "video": "x"}, []),
    ],
)
def test_two_outputs_of_one_path_are_refused(
    flags: dict[str, Any], tables: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"(a\.jsonl|proposals\.jsonl|x): given for two outputs"):
        check_outputs(OutputFlags(**flags), read_outputs(tables, source="test"), "model.onnx", *run_of(LIVE))


def test_outputs_side_by_side_and_several_on_the_standard_output_are_fine(tmp_path: Path) -> None:
    tables = [{"kind": "jsonl", "path": "-"}, {"kind": "jsonl", "path": str(tmp_path / "x" / "b.jsonl")}]
    flags = OutputFlags(output=str(tmp_path / "x"), jsonl="-")
    check_outputs(flags, read_outputs(tables, source="test"), "model.onnx", *run_of(LIVE))


@pytest.mark.parametrize("flags", [{"video": "a.mp4"}, {"mot": "a.txt"}])
def test_a_recording_of_a_live_source_is_never_overwritten(
    flags: dict[str, Any], make_clip: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in flags.values():
        Path(name).write_bytes(b"earlier")
    config, opened = run_of(SourceConfig(source=str(make_clip(3))))
    check_outputs(OutputFlags(**flags), (), "m.onnx", dataclasses.replace(config, track=TrackConfig()), opened)
    live = StreamsConfig(sources=(LIVE,), track=TrackConfig())
    with pytest.raises(ConfigError, match=r"a\.(mp4|txt): this file exists, and a recording of a live source"):
        check_outputs(OutputFlags(**flags), (), "m.onnx", live, {})


def test_a_folder_keeps_its_pictures_unless_an_earlier_run_made_them(make_clip: Make, tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    for folder in (images, out):
        folder.mkdir()
        cv2.imwrite(str(folder / "a.png"), np.zeros((48, 64, 3), np.uint8))
    clip, pictures = SourceConfig(source=str(make_clip(3))), SourceConfig(source=str(images))
    with pytest.raises(ConfigError, match=r"out/a\.png: would be overwritten, and no earlier run made this file"):
        check_outputs(OutputFlags(video=str(out)), (), "m.onnx", *run_of(pictures))
    check_outputs(OutputFlags(output=str(out)), (), "m.onnx", *run_of(clip))
    (out / "annotated.mp4").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"out/annotated\.mp4: would be overwritten"):
        check_outputs(OutputFlags(output=str(out)), (), "m.onnx", *run_of(clip))
    # A folder of version 0.1 has no list of them.
    (out / "proposals.jsonl").touch()
    check_outputs(OutputFlags(output=str(out)), (), "m.onnx", *run_of(clip))


def test_a_picture_of_a_taken_name_overwrites_no_file_either(tmp_path: Path) -> None:
    paths = [tmp_path / folder / name for folder, name in (("a", "x.png"), ("b", "x.png"), ("c", "x-2.png"))]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        cv2.imwrite(str(path), np.full((48, 64, 3), number, np.uint8))
    out = tmp_path / "out"
    out.mkdir()
    (out / "x-2-2.png").write_bytes(b"mine")
    flags, (config, opened) = OutputFlags(video=str(out)), run_of(SourceConfig(source=str(tmp_path / "[abc]/x*.png")))
    with pytest.raises(ConfigError, match=r"out/x-2-2\.png: would be overwritten, and no earlier run made this file"):
        check_outputs(flags, (), "m.onnx", config, opened)
    (out / "x-2-2.png").unlink()
    for _ in range(2):
        check_outputs(flags, (), "m.onnx", config, opened)
        sinks = open_outputs(flags, (), config, opened)
        for path in reversed(paths):
            sinks[0].write(result(config.sources[0].label, path=path))
        close_sinks(sinks)
        assert sorted(os.listdir(out)) == [".edgerpn", "x-2-2.png", "x-2.png", "x.png"]
    # Of a source that came later, by HTTP.
    pictures = PictureFolder(str(out), config, opened)
    pictures.write(result("late", path=Path("d/x.png")))
    assert sorted(os.listdir(out)) == [".edgerpn", "x-2-2.png", "x-2.png", "x-3.png", "x.png"]


def test_tracks_have_the_names_that_were_checked_in_whatever_order_they_come(make_clip: Make, tmp_path: Path) -> None:
    clips = [tmp_path / folder / name for folder, name in (("a", "x.avi"), ("b", "x.avi"), ("c", "x-2.avi"))]
    for clip in clips:
        clip.parent.mkdir()
        shutil.copy(make_clip(2), clip)
    config, opened = run_of(*(SourceConfig(source=str(clip)) for clip in clips))
    config, out = dataclasses.replace(config, track=TrackConfig()), tmp_path / "out"
    out.mkdir()
    (out / "x-3.txt").write_text("mine")
    flags = OutputFlags(mot=str(out))
    check_outputs(flags, (), "m.onnx", config, opened)
    sinks = open_outputs(flags, (), config, opened)
    for clip in reversed(clips):
        sinks[0].write(result(str(clip)))
    close_sinks(sinks)
    assert (out / "x-3.txt").read_text() == "mine"
    assert sorted(os.listdir(out)) == [".edgerpn", "x-2-2.txt", "x-2.txt", "x-3.txt", "x.txt"]


def test_the_name_of_an_annotated_picture_is_that_of_a_link_to_the_original(tmp_path: Path) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    for folder in (images, out):
        folder.mkdir()
    cv2.imwrite(str(tmp_path / "original.png"), np.zeros((48, 64, 3), np.uint8))
    (images / "a.png").symlink_to(tmp_path / "original.png")
    (out / "a.png").write_bytes(b"mine")
    config, opened = run_of(SourceConfig(source=str(images)))
    with pytest.raises(ConfigError, match=r"out/a\.png: would be overwritten"):
        check_outputs(OutputFlags(video=str(out)), (), "m.onnx", config, opened)
    with pytest.raises(ConfigError, match="images: the images of a source lie there"):
        check_outputs(OutputFlags(video=str(images)), (), "m.onnx", config, opened)


def test_tracks_in_a_folder_replace_those_of_an_earlier_run_and_no_other_text(make_clip: Make, tmp_path: Path) -> None:
    labels = tmp_path / "clip.txt"
    labels.write_text("0 0.5 0.5 0.1 0.1\n")
    config, opened = run_of(SourceConfig(source=str(make_clip(3))))
    config, flags = dataclasses.replace(config, track=TrackConfig()), OutputFlags(mot=str(tmp_path))
    with pytest.raises(ConfigError, match=r"clip\.txt: would be overwritten, and no earlier run made this file"):
        check_outputs(flags, (), "m.onnx", config, opened)
    labels.unlink()
    close_sinks(open_outputs(flags, (), config, opened))
    labels.write_text("4,1,13.00,41.00,80.00,80.00,0.9000,-1,-1,-1\n")
    check_outputs(flags, (), "m.onnx", config, opened)


def test_one_video_file_holds_one_source_also_when_others_may_come_by_http() -> None:
    config = StreamsConfig(sources=(LIVE,), http=HttpConfig(listen="127.0.0.1:0", control=True))
    with pytest.raises(ConfigError, match=r"--video a.mp4: one file holds one source; name a folder for others, which"):
        check_outputs(OutputFlags(video="a.mp4"), (), "model.onnx", config, {})


class Pane:
    """A window without a screen."""

    is_closed_by_user = False

    def __init__(self) -> None:
        self.is_open = True

    def write(self, result: Result) -> None:
        assert self.is_open

    def close(self) -> None:
        self.is_open = False


def test_the_window_of_a_source_that_was_removed_is_closed() -> None:
    panes: list[Any] = []

    def make(name: str) -> Any:
        panes.append(Pane())
        return panes[-1]

    windows = Windows(make)
    for source in ("door", "yard", "door"):
        windows.write(result(source))
    windows.event(Event(kind="ended", source="door", message="door: its server ends", reason="end_of_stream"))
    windows.event(Event(kind="ended", source="none", message="none: removed from the run", reason="removed"))
    assert [pane.is_open for pane in panes] == [True, True]
    windows.event(Event(kind="ended", source="door", message="door: removed from the run", reason="removed"))
    assert [pane.is_open for pane in panes] == [False, True]
    windows.write(result("door"))
    assert [pane.is_open for pane in panes] == [False, True, True]
