"""Files with names that native libraries read as addresses, or do not accept."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

import edgerpn.runtime
from edgerpn.__main__ import main
from edgerpn.files import native_path, printable, replacing
from edgerpn.manifest import manifest_path
from edgerpn.runtime.frame import Frame
from edgerpn.runtime.sources import CaptureConfig, open_capture
from edgerpn.runtime.sources.spec import expand_source

ODD = ["12:30:00", "rtsp:cam", "a ! b", "caf\udce9", "100%d", "[1]", "~", "-x"]


@pytest.fixture(params=ODD)
def odd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A stem of file names; the current folder is empty."""
    monkeypatch.chdir(tmp_path)
    return str(request.param)


def test_every_name_of_a_file_is_read_and_written(
    odd: str, model_path: Path, video_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix, file in ((".onnx", model_path), (".json", manifest_path(model_path)), (".mp4", video_path)):
        shutil.copy(file, odd + suffix)
    names = ["--video", f"./out/{odd}.mp4", "--jsonl", f"./out/{odd}.jsonl"]
    assert main(["run", f"./{odd}.onnx", f"./{odd}.mp4", *names, "--max-frames", "3"]) == 0
    records = [json.loads(line) for line in Path(f"out/{odd}.jsonl").read_text().splitlines()]
    assert [record["frame"] for record in records] == [0, 1, 2]
    assert {record["source"] for record in records} == {f"./{printable(odd)}.mp4"}
    with native_path(f"out/{odd}.mp4") as native:
        assert cv2.VideoCapture(native).get(cv2.CAP_PROP_FRAME_COUNT) == 3
    shown = capsys.readouterr()
    assert f"./out/{printable(odd)}.jsonl" in shown.out
    assert f"{printable(odd)}.onnx: ONNX Runtime" in shown.err
    assert "\\udce9" not in shown.err


def test_every_name_of_a_folder_is_read_and_written(odd: str, model_path: Path, video_path: Path) -> None:
    os.mkdir(odd)
    shutil.copy(video_path, f"{odd}/clip.mp4")
    assert main(["run", str(model_path), f"./{odd}/clip.mp4", "-o", f"./{odd}/out", "--max-frames", "2"]) == 0
    assert sorted(os.listdir(f"{odd}/out")) == [".edgerpn", "annotated.mp4", "proposals.jsonl"]


def test_a_model_streams_a_file_of_every_name(odd: str, model_path: Path, video_path: Path) -> None:
    shutil.copy(video_path, f"{odd}.mp4")
    with edgerpn.runtime.load(model_path, threads=1) as model:
        assert len(list(model.stream(Path(f"{odd}.mp4"), max_frames=2))) == 2


@pytest.mark.parametrize("decoder", ["ffmpeg", "ffmpeg-process"])
@pytest.mark.parametrize("name", ["12:30:00", "caf\udce9", "it's"])
def test_a_capture_process_reads_a_file_of_every_name(
    name: str, decoder: Any, video_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if decoder == "ffmpeg-process" and shutil.which("ffmpeg") is None:
        pytest.skip("needs the program ffmpeg")
    monkeypatch.chdir(tmp_path)
    shutil.copy(video_path, f"{name}.mp4")
    with open_capture(CaptureConfig(source=f"{name}.mp4", decoder=decoder)) as capture:
        items = iter(lambda: capture.take(30.0), None)
        assert next(item for item in items if isinstance(item, Frame)).source == f"{printable(name)}.mp4"


def test_images_with_names_that_are_not_utf_8(
    model_path: Path, paint: Callable[..., npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    os.mkdir(tmp_path / "in\udce9")
    (tmp_path / "in\udce9" / "caf\udce9.png").write_bytes(cv2.imencode(".png", paint(96, 160, count=0))[1].tobytes())
    (tmp_path / "in\udce9" / "b\udce9.png").write_bytes(b"broken")
    assert main(["run", str(model_path), str(tmp_path / "in\udce9"), "-o", str(tmp_path / "out")]) == 0
    assert sorted(os.listdir(tmp_path / "out")) == [".edgerpn", "caf\udce9.png", "proposals.jsonl"]


def test_a_missing_file_is_named_without_bytes_that_no_terminal_takes(
    model_path: Path, video_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(model_path), str(tmp_path / "caf\udce9.mp4")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/caf\\xe9.mp4: no such file or folder\n"
    for command in (["inspect", "x\udce9.onnx"], ["run", "x\udce9.onnx", str(video_path)]):
        assert main(command) == 1
        assert capsys.readouterr().err.startswith("error: x\\xe9.onnx: no such file")


def test_a_library_that_takes_no_such_name_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edgerpn.export.inspection.run", lambda arguments: str(arguments.model).encode())
    assert main(["inspect", "x\udce9.pt"]) == 1
    assert capsys.readouterr().err.startswith("error: x\\xe9.pt: not UTF-8")


def test_bytes_that_are_not_utf_8_are_shown_by_their_number() -> None:
    assert printable("caf\udce9 \u00e9") == "caf\\xe9 \u00e9"
    assert printable("\ud800") == "\\ud800"


def test_a_native_path_is_absolute_and_leads_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a:b.txt", "caf\udce9.txt"):
        with replacing(name) as temporary, native_path(temporary) as native:
            Path(native).write_text("new")
        with native_path(name) as native:
            assert native.startswith("/")
            assert (Path(native).read_text(), native.isprintable()) == ("new", True)
    with pytest.raises(FileNotFoundError), native_path("none\udce9.txt"):
        pass


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home folder, which $WHERE names too; the current folder is another one."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WHERE", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("start", ["~", "$HOME", "${WHERE}"])
def test_settings_expand_paths_as_a_shell_does(
    start: str, home: Path, model_path: Path, video_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(video_path, home / "clip.mp4")
    output = f"[[outputs]]\nkind = 'jsonl'\npath = '{start}/a.jsonl'\n"
    Path("run.toml").write_text(f"[sources.a]\nsource = '{start}/clip.mp4'\n{output}")
    assert main(["run", str(model_path), "--config", "run.toml", "--max-frames", "2"]) == 0
    assert f"written: {home}/a.jsonl" in capsys.readouterr().out
    assert len((home / "a.jsonl").read_text().splitlines()) == 2
    words = ["run", str(model_path), "--config", "run.toml", "--print-config"]
    assert main([*words, "--set", f"http.token_file={start}/token", "--set", f"sources.a.source={start}/b.mp4"]) == 0
    shown = capsys.readouterr().out
    assert f'path = "{home}/a.jsonl"' in shown
    assert f'token_file = "{home}/token"' in shown
    assert f'source = "{home}/b.mp4"' in shown
    assert os.listdir() == ["run.toml"]


def test_an_option_with_an_equals_sign_expands_the_home_folder(home: Path, model_path: Path, video_path: Path) -> None:
    assert main(["run", str(model_path), str(video_path), "--jsonl=~/a.jsonl", "--max-frames=2"]) == 0
    assert len((home / "a.jsonl").read_text().splitlines()) == 2
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("$NOT_SET/a.mp4", "source: the environment variable NOT_SET in '\\$NOT_SET/a.mp4' is not set"),
        ("~nobody-of-this-name/a.mp4", "source: there is no user 'nobody-of-this-name'"),
    ],
)
def test_a_path_that_cannot_be_expanded_is_an_error(
    source: str, message: str, home: Path, model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("run.toml").write_text(f"[sources.a]\nsource = '{source}'\n")
    assert main(["run", str(model_path), "--config", "run.toml"]) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("source", ["rtsp://user:pa$HOME@cam/x", "~ ! fakesink", "0", "$odd.mp4", "~odd.mp4"])
def test_what_is_no_path_or_exists_is_not_expanded(source: str, home: Path) -> None:
    Path("$odd.mp4").touch()
    Path("~odd.mp4").touch()
    assert expand_source(source) == source
