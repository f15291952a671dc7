"""Objects made before os.fork(): the child neither waits for them nor touches what they share with the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

_PROGRAM = """
import gc, os, sys, traceback
from pathlib import Path
import numpy as np
{before}
def child():
{child}
pid = os.fork()
if pid == 0:
    try:
        child()
    except BaseException:
        traceback.print_exc()
        os._exit(7)
    # The interpreter's exit, with its destructors.
    sys.exit(0)
status = os.waitpid(pid, 0)[1]
{after}
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run_forked(before: str, child: str, after: str = "", *, folder: Path, arguments: tuple[object, ...] = ()) -> None:
    """Runs three parts of a program: before a fork, in the child, and in the parent after the child's end."""
    before, child, after = (textwrap.dedent(part) for part in (before, child, after))
    program = _PROGRAM.format(before=before, child=textwrap.indent(child, "    "), after=after)
    command = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError("the child, or its parent, waits for ever") from None
    assert process.returncode == 0, output


LOADED = """
import edgerpn.runtime
model = edgerpn.runtime.load(sys.argv[1], threads=3)
frame = np.zeros((96, 160, 3), np.uint8)
expected = model(frame).scores
"""


@pytest.mark.parametrize("end", ["model.close()", "pass", "del globals()['model']; gc.collect()"])
def test_a_model_works_and_ends_in_a_child(end: str, model_path: Path, tmp_path: Path) -> None:
    child = f"assert (model(frame).scores == expected).all()\n{end}"
    run_forked(LOADED, child, "model(frame); model.close()", folder=tmp_path, arguments=(model_path,))


def test_a_video_source_ends_in_a_child(video_path: Path, tmp_path: Path) -> None:
    before = """
    from edgerpn.runtime.sources.file_sources import open_source
    source = open_source(sys.argv[1], decoder_threads=3)
    frames = iter(source)
    next(frames), next(frames)
    """
    run_forked(before, "source.close()", "assert len(list(frames)) == 38", folder=tmp_path, arguments=(video_path,))


def test_a_child_leaves_the_video_and_the_sink_to_its_parent(tmp_path: Path) -> None:
    before = """
    from edgerpn.errors import SinkError
    from edgerpn.runtime.sinks.picture_sinks import VideoFile
    from edgerpn.runtime.sinks.kinds import open_sinks, read_outputs
    from edgerpn.runtime.sinks.sink_queue import close_sinks
    from edgerpn.runtime.frame import Event
    video = VideoFile(Path("a.mp4"), fps=10.0, size_wh=(64, 48))
    video.write(np.zeros((48, 64, 3), np.uint8))
    sinks = open_sinks(read_outputs([{"kind": "jsonl", "path": "a.jsonl"}], source="test"), is_live=False)
    event = Event(kind="started", source="a", message="a")
    """
    child = """
    try:
        sinks[0].event(event)
    except SinkError as error:
        assert "opened before a fork" in str(error)
    else:
        raise AssertionError
    close_sinks(sinks)
    """
    after = """
    video.write(np.zeros((48, 64, 3), np.uint8))
    video.finish()
    sinks[0].event(event)
    close_sinks(sinks)
    assert len(Path("a.jsonl").read_text().splitlines()) == 1
    """
    run_forked(before, child, after, folder=tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "a.mp4"]


def test_a_child_leaves_the_camera_to_its_parent(video_path: Path, tmp_path: Path) -> None:
    before = """
    from edgerpn.runtime.sources import CaptureConfig, open_capture
    from edgerpn.runtime.frame import Frame
    capture = open_capture(CaptureConfig(source=sys.argv[1], decoder="ffmpeg", slots=3))
    def next_frame():
        while not isinstance(item := capture.take(), Frame):
            assert item is not None
        return item
    held = next_frame()
    value = held.image.copy()
    """
    child = """
    global held
    held = None
    gc.collect()
    try:
        capture.take()
    except RuntimeError as error:
        assert "before a fork" in str(error)
    else:
        raise AssertionError
    capture.close()
    """
    after = """
    rest = sum(next_frame().index > 0 for _ in range(39))
    assert rest == 39 and (held.image == value).all()
    capture.close()
    """
    run_forked(before, child, after, folder=tmp_path, arguments=(video_path,))


def test_a_file_that_is_being_written_survives_a_child(tmp_path: Path) -> None:
    before = """
    from edgerpn.files import replacing
    writing = replacing("a.txt")
    temporary = writing.__enter__()
    temporary.write_text("whole")
    """
    after = "writing.__exit__(None, None, None); assert Path('a.txt').read_text() == 'whole'"
    run_forked(before, "global writing; writing = None; gc.collect()", after, folder=tmp_path)
