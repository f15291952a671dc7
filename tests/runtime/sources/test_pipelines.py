"""GStreamer pipelines: their elements, and that they run, with software elements in the place of a Jetson's."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

from edgerpn.runtime.sources import CaptureConfig, CaptureFailedError
from edgerpn.runtime.sources.decoders import Abilities, VideoFacts, choose
from edgerpn.runtime.sources.pipelines import Codec, pipeline_of, quoted
from edgerpn.runtime.sources.readers import probe_video

Make = Callable[..., Any]

ORIN = Abilities(has_ffmpeg=True, has_gstreamer=True, has_v4l2=True, has_program=True, has_nvv4l2=True, has_nvjpeg=True)
THOR = dataclasses.replace(ORIN, has_nvjpeg=False)
RTSP, HTTP = CaptureConfig(source="rtsp://u:p@host/x"), CaptureConfig(source="http://host/x")
TAIL = ["nvvidconv", "video/x-raw,format=BGRx", "videoconvert", "video/x-raw,format=BGR"]
LIVE = "appsink drop=true max-buffers=1 sync=false"


def elements(config: CaptureConfig, codec: Codec | None = None, *, is_hardware: bool = True) -> list[str]:
    """Returns the elements of a pipeline, without the source's own."""
    return pipeline_of(config, codec=codec, is_hardware=is_hardware).split(" ! ")[1:]


@pytest.mark.parametrize(
    ("codec", "before"),
    [
        ("h264", ["rtph264depay", "h264parse", "nvv4l2decoder enable-max-performance=1"]),
        ("h265", ["rtph265depay", "h265parse", "nvv4l2decoder enable-max-performance=1"]),
        ("mjpeg", ["rtpjpegdepay", "jpegparse", "nvv4l2decoder mjpeg=1"]),
        (None, ["parsebin", "nvv4l2decoder enable-max-performance=1"]),
    ],
)
def test_an_rtsp_camera_is_decoded_in_hardware(codec: Codec | None, before: list[str]) -> None:
    assert elements(RTSP, codec) == ["application/x-rtp,media=video", *before, *TAIL, LIVE]


@pytest.mark.parametrize(
    ("head", "codec", "before"),
    [
        (b"\0\0\0\x18ftypmp42", "h264", ["qtdemux", "video/x-h264", "h264parse"]),
        (b"\x1a\x45\xdf\xa3", "h265", ["matroskademux", "video/x-h265", "h265parse"]),
        (b"RIFF\0\0\0\0AVI LIST", "mjpeg", ["avidemux", "image/jpeg", "jpegparse"]),
        (b"\x47\x40\0\x10", "h264", ["tsdemux", "video/x-h264", "h264parse"]),
        (b"\0\0\0\1\x67", "h264", ["parsebin"]),
    ],
)
def test_a_file_is_split_by_its_container_and_waits_for_its_reader(
    head: bytes, codec: Codec, before: list[str], tmp_path: Path
) -> None:
    (tmp_path / "film").write_bytes(head)
    found = elements(CaptureConfig(source=str(tmp_path / "film")), codec)
    assert found[: len(before)] == before
    assert found[len(before) + 1 :] == [*TAIL, "appsink drop=false max-buffers=2 sync=false"]


def test_pictures_and_videos_over_http() -> None:
    parts = ["multipartdemux single-stream=true", "image/jpeg", "jpegparse", "nvv4l2decoder mjpeg=1"]
    assert elements(HTTP, "mjpeg") == [*parts, *TAIL, LIVE]
    assert elements(HTTP, "h264")[:2] == ["parsebin", "nvv4l2decoder enable-max-performance=1"]
    login = pipeline_of(CaptureConfig(source="http://a%20b:it%22s@host:81/x?y=1"), codec="mjpeg", is_hardware=True)
    assert login.startswith('souphttpsrc location="http://host:81/x?y=1" user-id="a b" user-pw="it\\"s" ')


def test_the_hardware_scales_before_the_copy() -> None:
    sized = dataclasses.replace(RTSP, size_wh=(640, 384))
    scaled = ["nvvidconv interpolation-method=1", "video/x-raw,format=BGRx,width=640,height=384", "videoconvert"]
    assert elements(sized, "h264")[-5:-2] == scaled
    usb = CaptureConfig(source="/dev/video0", size_wh=(1280, 720), rate_hz=30.0)
    asked = ["image/jpeg,width=1280,height=720,framerate=30000/1000", "jpegparse", "nvv4l2decoder mjpeg=1"]
    assert elements(usb, "mjpeg") == [*asked, *TAIL, LIVE]


def test_pictures_of_four_channels_leave_the_hardware_as_they_are() -> None:
    sized = dataclasses.replace(RTSP, size_wh=(640, 384), channels="bgrx")
    assert elements(sized, "h264")[-2:] == ["video/x-raw,format=BGRx,width=640,height=384", LIVE]
    csi = pipeline_of(CaptureConfig(source="csi://0", channels="bgrx"), is_hardware=True)
    assert csi.endswith(f"format=NV12 ! nvvidconv ! video/x-raw,format=BGRx ! {LIVE}")
    for channels in ("auto", "bgr"):
        assert elements(dataclasses.replace(RTSP, channels=channels), "h264")[-5:] == [*TAIL, LIVE]
    assert elements(dataclasses.replace(RTSP, channels="bgrx"), is_hardware=False)[-2:-1] == [TAIL[-1]]


def test_settings_of_csi_cameras_and_software() -> None:
    csi = pipeline_of(CaptureConfig(source="csi://1", size_wh=(1280, 720), rate_hz=29.97), is_hardware=True)
    assert csi.startswith("nvarguscamerasrc sensor-id=1 ! video/x-raw(memory:NVMM),width=1280,height=720,")
    assert f"framerate=29970/1000,format=NV12 ! {' ! '.join(TAIL)} ! {LIVE}" in csi
    assert "protocols=udp" in pipeline_of(CaptureConfig(source="rtsp://h/x", transport="udp"), is_hardware=False)
    assert elements(RTSP, is_hardware=False)[1:3] == ["decodebin", "videoconvert"]
    assert quoted('a"b\\c') == '"a\\"b\\\\c"'


@pytest.mark.parametrize(
    ("config", "abilities", "codec", "expected"),
    [
        (RTSP, ORIN, "h265", ("gstreamer", "rtph265depay")),
        # Only the pipeline's own parser knows the codec.
        (RTSP, ORIN, None, ("gstreamer", "parsebin")),
        (HTTP, ORIN, "mjpeg", ("gstreamer", "nvv4l2decoder mjpeg=1")),
        (HTTP, THOR, "mjpeg", ("ffmpeg", "")),
        (HTTP, ORIN, None, ("ffmpeg", "")),
        (dataclasses.replace(HTTP, decoder="ffmpeg"), ORIN, "mjpeg", ("ffmpeg", "")),
        (dataclasses.replace(HTTP, decoder="gstreamer"), ORIN, None, ("gstreamer", "uridecodebin")),
        (CaptureConfig(source="srt://host:1", decoder="gstreamer"), ORIN, "h264", ("gstreamer", "uridecodebin")),
        (CaptureConfig(source="a.mp4", decoder="gstreamer"), ORIN, "h264", ("gstreamer", "nvv4l2decoder")),
        (CaptureConfig(source="a.mp4", policy="latest"), ORIN, "h264", ("ffmpeg", "")),
        (CaptureConfig(source="0", decoder="gstreamer", pixel_format="MJPG"), ORIN, None, ("gstreamer", "v4l2src")),
        (CaptureConfig(source="0", pixel_format="MJPG"), ORIN, None, ("v4l2", "")),
    ],
)
def test_the_hardware_is_chosen_for_what_it_can_decode(
    config: CaptureConfig, abilities: Abilities, codec: Codec | None, expected: tuple[str, str]
) -> None:
    choice = choose(config, abilities, lambda: VideoFacts(codec))
    assert choice.decoder == expected[0]
    assert expected[1] in choice.pipeline


def test_a_codec_of_the_settings_saves_the_question_and_a_failed_question_is_the_error() -> None:
    asked = dataclasses.replace(RTSP, codec="h264")
    assert "rtph264depay" in choose(asked, ORIN, lambda: pytest.fail("it was asked")).pipeline

    def refuse() -> VideoFacts:
        raise CaptureFailedError("", reason="unauthorised")

    with pytest.raises(CaptureFailedError) as caught:
        choose(RTSP, ORIN, refuse)
    assert caught.value.reason == "unauthorised"


@pytest.mark.parametrize(
    ("config", "hw", "scaled_wh"),
    [
        (RTSP, (1080, 1920), (640, 360)),
        (RTSP, (1920, 1080), (216, 384)),
        (dataclasses.replace(HTTP, decoder="gstreamer"), (720, 1280), (640, 360)),
        (CaptureConfig(source="csi://0", size_wh=(1920, 1080)), None, (640, 360)),
        (CaptureConfig(source="0", decoder="gstreamer", pixel_format="MJPG", size_wh=(1280, 720)), None, (640, 360)),
        # Unknown, as small already, odd, or asked for by the user.
        (RTSP, None, None),
        (CaptureConfig(source="csi://0"), None, None),
        (dataclasses.replace(RTSP, codec="h264"), (1080, 1920), None),
        (RTSP, (360, 640), None),
        (RTSP, (1090, 1920), None),
        (dataclasses.replace(RTSP, size_wh=(320, 180)), (1080, 1920), None),
    ],
)
def test_the_hardware_scales_a_known_size_to_that_of_the_network(
    config: CaptureConfig, hw: tuple[int, int] | None, scaled_wh: tuple[int, int] | None
) -> None:
    for_network = dataclasses.replace(config, network_hw=(384, 640))
    choice = choose(for_network, ORIN, lambda: VideoFacts("h264", hw))
    if scaled_wh is None:
        assert (choice.camera_hw, choice.pipeline) == (None, choose(config, ORIN, lambda: VideoFacts("h264")).pipeline)
        return
    width, height = scaled_wh
    assert (
        f"nvvidconv interpolation-method=1 ! video/x-raw,format=BGRx,width={width},height={height} !" in choice.pipeline
    )
    assert choice.camera_hw == (hw or (config.size_wh or (0, 0))[::-1])
    assert choice.why.endswith(f"; scaled to {width}x{height} for the network")
    assert choose(config, ORIN, lambda: VideoFacts("h264", hw)).camera_hw is None


SOFTWARE = {"h264": "avdec_h264", "h265": "avdec_h265", "mjpeg": "jpegdec"}


def run_in_software(text: str, codec: Codec, num_frames: int) -> str:
    """Runs a pipeline until so many frames have come; returns the caps of the last element."""
    text = re.sub(r"nvv4l2decoder [\w-]+=1", SOFTWARE[codec], text)
    text = re.sub(r"nvvidconv( interpolation-method=1)?", "videoconvert ! videoscale", text)
    text = re.sub(r"appsink .*", f"fakesink num-buffers={num_frames}", text)
    # The shell's quotes are those of a pipeline, but for its own characters.
    done = subprocess.run(
        ["bash", "-c", f"gst-launch-1.0 -v {text.replace('$', chr(92) + '$')}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "GST_REGISTRY_FORK": "no"},
    )
    assert done.returncode == 0, f"{text}\n{done.stderr}"
    return [line for line in done.stdout.splitlines() if "fakesink0.GstPad:sink: caps" in line][-1]


@pytest.fixture(scope="module")
def gstreamer() -> None:
    """Skips where GStreamer cannot decode (on Debian: gstreamer1.0-tools, -plugins-good, -plugins-bad, -libav)."""
    names = ("avdec_h264", "avdec_h265", "jpegparse", "rtph264depay", "multipartdemux", "souphttpsrc", "qtdemux")
    if shutil.which("gst-inspect-1.0") is None or shutil.which("ffmpeg") is None:
        pytest.skip("gst-inspect-1.0 or ffmpeg is not installed")
    for name in names:
        if subprocess.run(["gst-inspect-1.0", "--exists", name], check=False).returncode:
            pytest.skip(f"GStreamer has no {name} here")


@pytest.mark.usefixtures("gstreamer")
@pytest.mark.parametrize(
    ("name", "codec", "encoder"),
    [
        ("a.mp4", "h264", "libx264"),
        ("a b'$.mkv", "h265", "libx265"),
        ("a\udce9.ts", "h264", "libx264"),
        ("a.avi", "mjpeg", "mjpeg"),
    ],
)
def test_pipelines_of_files_run(name: str, codec: Codec, encoder: str, tmp_path: Path) -> None:
    path = tmp_path / name
    films = ["-f", "lavfi", "-i", "testsrc=size=320x240:rate=25:duration=1", "-f", "lavfi", "-i", "sine=duration=1"]
    subprocess.run(["ffmpeg", "-loglevel", "quiet", *films, "-c:v", encoder, str(path)], check=True)
    config = CaptureConfig(source=str(path), size_wh=(160, 120))
    caps = run_in_software(pipeline_of(config, codec=codec, is_hardware=True), codec, 25)
    assert "width=(int)160, height=(int)120" in caps
    assert "format=(string)BGR" in caps


@pytest.mark.usefixtures("gstreamer")
def test_a_film_of_a_larger_size_is_asked_for_it_and_scaled_to_that_of_the_network(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    films = ["-f", "lavfi", "-i", "testsrc=size=320x240:rate=25:duration=1"]
    subprocess.run(["ffmpeg", "-loglevel", "quiet", *films, "-c:v", "libx264", str(path)], check=True)
    config = CaptureConfig(source=str(path), decoder="gstreamer", network_hw=(96, 160))
    facts = probe_video(cv2, config)
    assert facts == VideoFacts("h264", (240, 320))
    choice = choose(config, ORIN, lambda: facts)
    assert "width=(int)128, height=(int)96" in run_in_software(choice.pipeline, "h264", 25)
    assert choice.camera_hw == (240, 320)


@pytest.mark.usefixtures("gstreamer")
@pytest.mark.parametrize("has_lengths", [True, False])
def test_the_pipeline_of_pictures_over_http_runs(has_lengths: bool, make_mjpeg: Make) -> None:
    camera = make_mjpeg(login="viewer:it's $5", size_wh=(320, 240), has_lengths=has_lengths)
    config = CaptureConfig(source=camera.url.replace("//", "//viewer:it's%20$5@"))
    caps = run_in_software(pipeline_of(config, codec="mjpeg", is_hardware=True), "mjpeg", 5)
    assert "width=(int)320, height=(int)240" in caps


@pytest.mark.usefixtures("gstreamer")
@pytest.mark.parametrize("codec", ["h264", "mjpeg"])
def test_the_pipeline_of_an_rtsp_camera_runs(codec: Codec, make_camera: Make) -> None:
    camera = make_camera(codec=codec, password="p@ss")
    config = CaptureConfig(source=f"rtsp://viewer:p%40ss@127.0.0.1:{camera.port}/cam", size_wh=(160, 120))
    caps = run_in_software(pipeline_of(config, codec=codec, is_hardware=True), codec, 5)
    assert "width=(int)160, height=(int)120" in caps
