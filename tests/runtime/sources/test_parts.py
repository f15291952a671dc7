"""The parts of capturing that need no process: settings, clocks, reasons, decoders, packets, mailbox."""

from __future__ import annotations

import dataclasses
import math
import os
import random
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerpn.errors import StreamOpenError
from edgerpn.runtime.frame import Frame
from edgerpn.runtime.sources import CaptureConfig
from edgerpn.runtime.sources.capture import Mailbox
from edgerpn.runtime.sources.decoders import Abilities, choose
from edgerpn.runtime.sources.failures import FIXES, CaptureFailedError, classify
from edgerpn.runtime.sources.ffmpeg_reader import playlist
from edgerpn.runtime.sources.process import CaptureProcess
from edgerpn.runtime.sources.pump import LagMeter, RateCap
from edgerpn.runtime.sources.readers import OpenCvReader
from edgerpn.runtime.sources.reconnect import Backoff, ExitReport, judge_exit
from edgerpn.runtime.sources.spec import parse_source
from edgerpn.runtime.sources.wire import pack_frame, unpack_frame

PC = Abilities(
    has_ffmpeg=True, has_gstreamer=False, has_v4l2=True, has_program=True, has_nvv4l2=False, has_nvjpeg=False
)
JETSON = dataclasses.replace(PC, has_gstreamer=True, has_nvv4l2=True, has_nvjpeg=True)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("0", "camera"),
        ("/dev/video2", "camera"),
        ("/dev/v4l/by-id/usb-cam-index0", "camera"),
        ("csi://1", "csi"),
        ("RTSPS://host/x", "url"),
        ("http://host/x", "url"),
        ("v4l2src ! videoconvert ! appsink", "pipeline"),
        ("cars.mp4", "path"),
        ("file:///a/b.mp4", "path"),
        ("photos/*.jpg", "path"),
    ],
)
def test_kinds_of_sources(source: str, kind: str) -> None:
    assert parse_source(source).kind == kind


@pytest.mark.parametrize("source", ["", "  ", "ftp://user:secret@host/x", "csi://left"])
def test_sources_that_cannot_be_are_refused_at_once(source: str) -> None:
    with pytest.raises(StreamOpenError) as caught:
        CaptureConfig(source=source)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("policy", "newest"),
        ("queue_frames", 0),
        ("slots", 1),
        ("slots", 1000),
        ("max_fps", -1.0),
        ("max_fps", math.nan),
        ("stall_s", 0.5),
        ("gap_s", 0.0),
        ("backoff_max_s", 0.1),
        ("size_wh", (0, 480)),
        ("rate_hz", 0.0),
        ("pixel_format", "MJPEG"),
        ("transport", "sctp"),
        ("decoder", "magic"),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        CaptureConfig(**{"source": "0", name: value})  # type: ignore[arg-type]


def test_a_configuration_shows_no_password() -> None:
    config = CaptureConfig(source="rtsp://user:secret@host/x?token=hidden")
    assert "secret" not in repr(config) + config.label
    assert "hidden" not in repr(config) + config.label
    assert config.label.endswith("@host/x?token=***")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[OPENCV:FFMPEG:16] method DESCRIBE failed: 401 Unauthorized", "unauthorised"),
        ("Server returned 403 Forbidden (access denied)", "unauthorised"),
        ("method DESCRIBE failed: 404 (Not Found)", "not_found"),
        ("[http @ 0x1] HTTP error 404 Not Found", "not_found"),
        ("Connection to tcp://127.0.0.1:404?timeout=0 failed: Connection refused", "refused"),
        ("Failed to resolve hostname nosuch.invalid: Name or service not known", "unreachable"),
        ("[ WARN:0@0.5] Stream timeout triggered after 503.2 ms", "timeout"),
        ("method SETUP failed: 453 Not Enough Bandwidth", "busy"),
        ("[tls @ 0x1] A TLS fatal alert has been received: handshake failure", "tls"),
        ("rtsp://host/x: Invalid data found when processing input", "codec"),
        ("module rtspsrc0 reported: Could not connect to server", "refused"),
        ('no element "nvarguscamerasrc"', "dependency"),
        ("[h264 @ 0x5] error while decoding MB 3 4", "unknown"),
    ],
)
def test_messages_of_decoders_show_the_reason(line: str, reason: str) -> None:
    assert classify(["something else", line]) == reason
    assert reason in FIXES


@pytest.mark.parametrize(
    ("line", "kept", "counts"),
    [
        ("[OPENCV:FFMPEG:16] error while decoding MB 3 4", "error while decoding MB 3 4", 1),
        # Of every Motion JPEG.
        ("[OPENCV:FFMPEG:24] deprecated pixel format used, make sure", "deprecated pixel format used, make sure", 0),
        (
            '0:00:00.0493  6577    0xa3c0240 ERROR         GST_PIPELINE gst/parse/grammar.y:570:make: no element "x"',
            'no element "x"',
            1,
        ),
        (
            "0:00:00.05 78 0x2c ERROR rtspsrc gstrtspsrc.c:53:gst_connect:<rtspsrc0> Could not connect to server.",
            "Could not connect to server.",
            1,
        ),
        (
            "[ WARN:0@0.2] global ./cap_gstreamer.cpp (2401) handleMessage OpenCV | GStreamer warning: Embedded"
            " video playback halted; module rtspsrc0 reported: Unauthorized",
            "Embedded video playback halted; module rtspsrc0 reported: Unauthorized",
            1,
        ),
        (
            "[ WARN:0@0.2] global ./cap_gstreamer.cpp (1356) open OpenCV | GStreamer warning: unable to start pipeline",
            "unable to start pipeline",
            0,
        ),
        ("[OPENCV:FFMPEG:40] [h264 @ 0x1] Reinit context to 320x240, pix_fmt: 0", None, 0),
        ("[OPENCV:FFMPEG:40] Opening 'x' for reading", None, 0),
        ("login with hunter2 failed at rtsp://u:hunter2@h/", "login with *** failed at rtsp://***@h/", 1),
    ],
)
def test_messages_are_kept_without_ballast_and_passwords(line: str, kept: str | None, counts: int) -> None:
    process = object.__new__(CaptureProcess)
    process.lines, process.num_lines, process.first_size, process.last_size = deque(), 0, "", ""
    process._secrets = ["hunter2"]
    process._keep([line.encode()])
    assert list(process.lines) == ([] if kept is None else [kept])
    assert process.num_lines == counts


def kept(process: CaptureProcess, data: bytes) -> list[str]:
    """Returns what the process keeps of a child's output, read from a pipe."""
    process.lines, process.num_lines, process.first_size, process.last_size = deque(), 0, "", ""
    process._secrets, process._rest = ["hunter2"], b""
    process.output_fd, output = os.pipe()
    try:
        while data:
            os.write(output, data[:30_000])
            data = data[30_000:]
            if data:
                os.set_blocking(process.output_fd, False)
                process.read_output()
    finally:
        os.close(output)
    process.read_output()
    os.close(process.output_fd)
    return list(process.lines)


@pytest.mark.parametrize("num_letters", [1990, 2020, 2047, 2048, 2049, 70_000])
@pytest.mark.parametrize("end", [b"", b"\n", b"tail\nnext line\n"])
def test_no_part_of_a_secret_is_kept_of_a_long_line(num_letters: int, end: bytes) -> None:
    # The address in front becomes three characters, and so the end of the part that is read comes into view.
    line = b"at http://u:" + b"x" * num_letters + b"@h/ with rtsp://me:hunter2@h/ and token=" + b"s" * 3000 + end
    lines = kept(object.__new__(CaptureProcess), line)
    assert not {letters for text in lines for letters in ("xx", "hunter", "ss") if letters in text}
    assert lines[0].startswith("at")
    assert lines[1:] == ["next line"] * (b"next" in end)


def test_pictures_of_16_bits_end_the_source_and_are_not_cut_to_8() -> None:
    # The capture stands for a thermal camera, of which no driver is here.
    reader = object.__new__(OpenCvReader)
    reader._capture = SimpleNamespace(retrieve=lambda into: (True, np.full((4, 6), 300, np.uint16)))
    with pytest.raises(CaptureFailedError, match="the pictures are uint16, expected 8 bits") as caught:
        reader.retrieve(None)
    assert (caught.value.reason, caught.value.is_final) == ("codec", True)


def test_lag_is_measured_against_the_quickest_frames_and_survives_drift() -> None:
    meter = LagMeter()
    noise = random.Random(1)
    # A camera whose clock is slow by 1 in 1000, for an hour, with jitter of up to 20 ms.
    for index in range(36_000):
        now_s = 5000 + index * 0.1 + noise.uniform(0, 0.02)
        lag_s, jump_s = meter.add(index * 0.1 * 0.999, now_s)
        assert jump_s == 0
        assert -1e-9 <= lag_s < 0.15
    lag_s, _ = meter.add(36_000 * 0.1 * 0.999, 5000 + 36_000 * 0.1 + 3.0)
    assert 2.9 < lag_s < 3.2


@pytest.mark.parametrize("jump_s", [-3600.0, -2.0, 2.0, 86_400.0])
def test_a_jump_of_the_clock_is_reported_once(jump_s: float) -> None:
    meter = LagMeter()
    found = []
    for index in range(200):
        media_s = index * 0.05 + (jump_s if index >= 100 else 0)
        found.append(meter.add(media_s, 100 + index * 0.05)[1])
    assert found[100] == pytest.approx(jump_s, abs=0.01)
    assert not any(found[:100] + found[101:])


def test_late_frames_are_no_jump() -> None:
    meter = LagMeter()
    arrivals_s = (
        [0.1 * i for i in range(20)] + [5.0 + 0.001 * i for i in range(30)] + [5.1 + 0.1 * i for i in range(20)]
    )
    told = [meter.add(0.1 * i, arrival_s) for i, arrival_s in enumerate(arrivals_s)]
    assert max(lag_s for lag_s, _ in told) == pytest.approx(3.0, abs=0.1)
    assert not any(jump_s for _, jump_s in told)


@given(st.floats(1, 60), st.floats(1, 60))
def test_a_rate_cap_lets_as_many_through_as_it_should(rate_hz: float, max_fps: float) -> None:
    cap = RateCap(max_fps)
    passed = sum(cap.lets_through(index / rate_hz) for index in range(int(20 * rate_hz)))
    assert passed / 20 <= max_fps + 0.11
    assert passed / 20 >= min(rate_hz, max_fps) * 0.9 - 0.11


def test_decoders_are_chosen_by_the_abilities_of_the_machine() -> None:
    rtsp = CaptureConfig(source="rtsp://u:p@host/x")
    assert choose(rtsp, PC).decoder == "ffmpeg"
    hardware = choose(rtsp, JETSON)
    assert (hardware.decoder, "nvv4l2decoder" in hardware.pipeline) == ("gstreamer", True)
    assert "nvv4l2decoder" in hardware.why
    no_gstreamer = choose(rtsp, dataclasses.replace(JETSON, has_gstreamer=False))
    assert (no_gstreamer.decoder, "not usable" in no_gstreamer.why) == ("ffmpeg", True)
    assert choose(rtsp, dataclasses.replace(PC, has_ffmpeg=False)).decoder == "ffmpeg-process"
    assert choose(CaptureConfig(source="0"), PC).decoder == "v4l2"
    for config, abilities in (
        (CaptureConfig(source="csi://0"), PC),
        (rtsp, dataclasses.replace(PC, has_ffmpeg=False, has_program=False)),
        (dataclasses.replace(rtsp, decoder="gstreamer"), PC),
    ):
        with pytest.raises(CaptureFailedError) as caught:
            choose(config, abilities)
        assert caught.value.is_final
        assert caught.value.reason == "unsupported"


def test_the_list_for_ffmpeg_keeps_quotes_and_refuses_line_ends() -> None:
    assert "file 'rtsp://u:it'\\''s@h/x'" in playlist(CaptureConfig(source="rtsp://u:it's@h/x"))
    with pytest.raises(CaptureFailedError, match="line end"):
        playlist(CaptureConfig(source="rtsp://h/x\nfile '/etc/passwd'"))


def test_backoff_doubles_to_its_limit_with_jitter() -> None:
    backoff = Backoff(CaptureConfig(source="0"))
    delays_s = [backoff.next_s("refused") for _ in range(50)]
    for index, delay_s in enumerate(delays_s):
        longest_s = min(30, 2**index)
        assert longest_s / 2 <= delay_s <= longest_s
    assert len(set(delays_s)) > 40
    backoff.reset()
    assert backoff.next_s("refused") <= 1.0
    backoff.reset()
    assert backoff.next_s("unauthorised") >= 15


def test_a_file_is_never_read_twice() -> None:
    config = CaptureConfig(source="a.mp4")
    word = ExitReport(reason="unknown", message="", is_final=False)
    assert judge_exit(config, None, -11, [], False).is_final
    assert judge_exit(config, None, -11, [], None).message == "a.mp4: the capture process crashed (SIGSEGV)"
    for line in (
        "NoThreadError: the thread 'edgerpn-control' cannot be started: can't start new thread.",
        "OpenBLAS blas_thread_init: pthread_create failed for thread 1 of 2: Resource temporarily unavailable",
    ):
        assert "limits of processes and threads (ulimit -u" in judge_exit(config, None, 1, [line], None).fix
    camera = CaptureConfig(source="rtsp://h/x")
    assert not judge_exit(camera, word, 0, [], None).is_final
    assert judge_exit(camera, word, 0, ["method DESCRIBE failed: 401 Unauthorized"], None).reason == "unauthorised"


@given(
    st.integers(0, 2**32 - 1),
    st.one_of(st.none(), st.floats(-1e9, 1e9)),
    st.sampled_from([3, 4]),
    st.sampled_from([None, (1080, 1920)]),
)
def test_packets_of_frames_come_back_as_they_were(
    count: int, media_s: float | None, num_channels: int, camera_hw: tuple[int, int] | None
) -> None:
    image = np.zeros((3, 4, num_channels), np.uint8)
    frame = Frame(
        image=image, source="a", index=2**40, connection=3, media_time_s=media_s, captured_at=1.5, monotonic_s=2.5,
        lag_ms=None, decode_ms=0.5, num_dropped=count, num_skipped=0, camera_hw=camera_hw,
    )  # fmt: skip
    asked = []

    def image_of(*place: Any) -> Any:
        asked.append(place)
        return image

    packet = pack_frame(frame, generation=1, slot=2)
    found = unpack_frame(packet, image_of, source="a", connection=3, first_index=7)
    assert found.index == 2**40 + 7
    assert repr(dataclasses.replace(found, index=2**40)) == repr(frame)
    assert asked == [(1, 2, (3, 4, num_channels))]


def make_frame(index: int) -> Frame:
    return Frame(
        image=np.zeros((1, 1, 3), np.uint8), source="a", index=index, connection=1, media_time_s=None, captured_at=0.0,
        monotonic_s=0.0, decode_ms=0.0, lag_ms=None,
    )  # fmt: skip


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=60))
def test_no_frame_is_lost_without_being_counted(max_frames: int, is_put: list[bool]) -> None:
    mailbox = Mailbox()
    next_index, last_index = 0, -1
    for put in is_put:
        if put:
            mailbox.put_frame(make_frame(next_index), max_frames)
            next_index += 1
        elif (item := mailbox.get()) is not None:
            assert isinstance(item, Frame)
            assert item.index - last_index == item.num_dropped + 1
            last_index = item.index
        assert len(mailbox) <= max_frames
