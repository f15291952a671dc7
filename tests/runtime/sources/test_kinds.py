"""Every kind of source that this machine can read, and the reasons of those that it cannot."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

import cv2
import numpy as np
import pytest

from edgerpn.runtime.frame import Event, Frame
from edgerpn.runtime.sources import CaptureConfig, CaptureFailedError
from edgerpn.runtime.sources.child import open_reader

Make = Callable[..., Any]


def take_all(player: Any) -> tuple[list[Frame], list[Event]]:
    """Takes all frames and events of a source."""
    frames: list[Frame] = []
    events: list[Event] = []
    while (item := player.capture.take(40.0)) is not None:
        if isinstance(item, Frame):
            frames.append(item)
        else:
            events.append(item)
    assert player.capture.is_exhausted
    return frames, events


def test_a_file_gives_every_frame_in_order_however_slow_the_consumer(clip: Path, play: Make) -> None:
    player = play(str(clip), slots=3, gap_s=0.4, stall_s=0.8)
    values, times, indices = [], [], []
    while (item := player.capture.take(40.0)) is not None:
        if isinstance(item, Frame):
            # Slower than stall_s once: a source that waits for its consumer is not stalled.
            time.sleep(1.6 if item.index == 10 else 0.002)
            values.append(int(item.image[0, 0, 0]))
            times.append(item.media_time_s)
            indices.append(item.index)
        else:
            player.events.append(item)
        del item
    assert values == [4 * i for i in range(60)]
    assert indices == list(range(60))
    assert times == pytest.approx([i / 25 for i in range(60)], abs=0.021)
    assert player.kinds() == ["started", "connected", "ended"]
    assert player.events[1].num_frames == 60
    assert not player.events[1].is_live
    assert player.capture.stats.num_dropped == 0


def test_a_file_url_is_a_file(clip: Path, play: Make) -> None:
    player = play(clip.as_uri(), slots=64)
    frames, _ = take_all(player)
    assert len(frames) == 60


def test_a_rate_cap_thins_a_file_evenly(clip: Path, play: Make) -> None:
    frames, _ = take_all(play(str(clip), max_fps=5.0, slots=64))
    assert [frame.index for frame in frames] == list(range(0, 60, 5))
    assert [frame.num_skipped for frame in frames[1:]] == [4] * 11


def test_images_need_no_capture_process(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.zeros((30, 40, 3), np.uint8))
    for source, reason in ((path, "unsupported"), (tmp_path, "not_found"), (tmp_path / "*.png", "not_found")):
        with pytest.raises(CaptureFailedError, match="video") as caught:
            open_reader(CaptureConfig(source=str(source)), cv2)
        assert (caught.value.reason, caught.value.is_final) == (reason, True)


def test_a_video_that_is_cut_short_says_so_at_its_end(clip: Path, tmp_path: Path, play: Make) -> None:
    data = clip.read_bytes()
    short = tmp_path / "short.avi"
    short.write_bytes(data[: len(data) // 2])
    frames, events = take_all(play(str(short), slots=64))
    assert 5 < len(frames) < 55
    assert [event.kind for event in events][-2:] == ["error", "ended"]
    assert "of 60 frames" in events[-2].message


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("/nowhere/at/all.mp4", "not_found"),
        ("/dev/video63", "not_found"),
        ("rtsp://nosuchhost.invalid/x", "unreachable"),
        ("http://127.0.0.1:9/x", "refused"),
        ("csi://0", "unsupported"),
        ("videotestsrc ! appsink", "unsupported"),
    ],
)
def test_a_source_that_does_not_open_has_a_reason(source: str, reason: str, play: Make) -> None:
    if reason == "unsupported" and cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        pytest.skip("this OpenCV has GStreamer")
    player = play(source)
    event, _ = player.until(lambda item: getattr(item, "kind", "") in ("error", "reconnecting"), 40.0)
    assert event.reason == reason
    assert event.fix
    # Only a source that may come back gets another attempt.
    is_final = reason == "unsupported" or source.endswith(".mp4")
    assert (event.kind == "error") == is_final
    if is_final:
        player.event("ended")
        assert player.capture.is_exhausted


@pytest.mark.parametrize(("scheme", "reason"), [("https", "tls"), ("rtsps", "tls")])
def test_a_port_without_tls_is_named(scheme: str, reason: str, make_mjpeg: Make, play: Make) -> None:
    url = make_mjpeg().url.replace("http://", f"{scheme}://viewer:hunter2@")
    down = play(url).event("reconnecting")
    assert down.reason == reason
    assert "certificate" in down.fix
    assert "hunter2" not in repr(down)


def test_a_page_without_video_is_named(play: Make, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<html>Please log in</html>\n" * 500)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        down = play(f"http://127.0.0.1:{server.server_port}/index.html").event("reconnecting")
        missing = play(f"http://127.0.0.1:{server.server_port}/none.mjpg").event("reconnecting")
        server.shutdown()
    assert (down.reason, missing.reason) == ("unauthorised", "not_found")


def test_a_stream_that_ends_reconnects(make_mjpeg: Make, play: Make) -> None:
    camera = make_mjpeg()
    camera.num_pictures = 20
    player = play(camera.url)
    player.event("connected")
    assert player.event("reconnecting").reason == "end_of_stream"
    assert player.event("connected").attempt == 2


def test_pictures_over_http_are_live(make_mjpeg: Make, play: Make) -> None:
    player = play(make_mjpeg().url)
    connected = player.event("connected")
    assert connected.is_live
    assert connected.size_wh == (64, 48)
    first, _ = player.frame()
    player.until(lambda item: getattr(item, "index", 0) >= first.index + 10, 40.0)


def test_a_login_over_http(make_mjpeg: Make, play: Make) -> None:
    camera = make_mjpeg(login="viewer:good word")
    address = camera.url.partition("//")[2]
    refused = play(f"http://viewer:badword@{address}", name="bad").event("reconnecting")
    assert refused.reason == "unauthorised"
    assert "badword" not in repr(refused)
    play(f"http://viewer:good%20word@{address}", name="good").frame()


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the program ffmpeg is not installed")
def test_the_program_ffmpeg_decodes_and_shows_no_password(make_mjpeg: Make, clip: Path, play: Make) -> None:
    frames, events = take_all(play(str(clip), decoder="ffmpeg-process", slots=64))
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [4 * i for i in range(60)]
    assert "in a separate process" in events[1].decoder
    camera = make_mjpeg(login="viewer:hidden-word")
    player = play(camera.url.replace("//", "//viewer:hidden-word@"), decoder="ffmpeg-process")
    player.frame()
    processes = subprocess.run(["ps", "axeww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert "image2pipe" in processes
    assert "hidden-word" not in processes
    assert "hidden-word" not in repr(player.capture.messages) + repr(player.events)


def write_playlist(path: Path, segment: str) -> Path:
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n{segment}\n#EXT-X-ENDLIST\n")
    return path


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    """Writes two seconds of video that playlists name."""
    path = tmp_path / "segment.ts"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MPG2"), 25, (96, 64))
    assert writer.isOpened()
    for index in range(50):
        writer.write(np.full((64, 96, 3), 4 * index, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize("decoder", ["ffmpeg", "ffmpeg-process"])
def test_a_playlist_of_a_server_cannot_name_files_of_this_machine(
    decoder: str, segment: Path, tmp_path: Path, play: Make
) -> None:
    if decoder == "ffmpeg-process" and shutil.which("ffmpeg") is None:
        pytest.skip("the program ffmpeg is not installed")
    served = tmp_path / "served"
    served.mkdir()
    shutil.copy(segment, served)
    write_playlist(served / "good.m3u8", segment.name)
    write_playlist(served / "bad.m3u8", f"file://{segment}")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=served)) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        play(f"{url}/good.m3u8", decoder=decoder, name="good").frame()
        bad = play(f"{url}/bad.m3u8", decoder=decoder, name="bad")
        bad.event("reconnecting")
        server.shutdown()
    assert bad.num_frames == 0
    assert "connected" not in bad.kinds()


def test_a_playlist_over_plain_tcp_cannot_name_files_either(segment: Path, tmp_path: Path, play: Make) -> None:
    text = write_playlist(tmp_path / "bad.m3u8", f"file://{segment}").read_bytes()

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(text)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        bad = play(f"tcp://127.0.0.1:{server.server_address[1]}/bad.m3u8", decoder="ffmpeg")
        bad.event("reconnecting")
        server.shutdown()
    assert bad.num_frames == 0
    assert "connected" not in bad.kinds()


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the program ffmpeg is not installed")
def test_a_playlist_in_a_file_still_names_files_beside_it(segment: Path, tmp_path: Path, play: Make) -> None:
    path = write_playlist(tmp_path / "own.m3u8", segment.name)
    play(str(path), decoder="ffmpeg-process").frame()


def test_passwords_are_in_no_list_of_processes(make_mjpeg: Make, play: Make) -> None:
    camera = make_mjpeg(login="viewer:hidden-word")
    player = play(camera.url.replace("//", "//viewer:hidden-word@"))
    player.frame()
    folder = Path(f"/proc/{player.capture.stats.pid}")
    assert b"hidden-word" not in (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()


@pytest.mark.parametrize("decoder", ["ffmpeg", "ffmpeg-process"])
def test_motion_jpeg_without_lengths(decoder: str, make_mjpeg: Make, play: Make) -> None:
    if decoder == "ffmpeg-process" and shutil.which("ffmpeg") is None:
        pytest.skip("the program ffmpeg is not installed")
    player = play(make_mjpeg(has_lengths=False).url, decoder=decoder, policy="every")
    levels = [int(player.frame()[0].image[0, 0, 0]) for _ in range(12)]
    # Picture i is grey of the value i: none is missing, cut or repeated.
    assert levels == pytest.approx(range(levels[0], levels[0] + 12), abs=1)
    assert "reconnecting" not in player.kinds()
