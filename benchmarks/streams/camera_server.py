"""An RTSP camera: given pictures as H.264 on 127.0.0.1, the time painted into each of them.

Run by the system's Python, which has PyGObject and GStreamer's RTSP server library. The clock sets the pictures; those
that the encoder cannot take in time are left out, as in a camera. All viewers share one encoder. It writes
`ready PORT` to standard output, and ends with the process that started it.
"""

from __future__ import annotations

import argparse
import ctypes
import signal
import sys
import threading
import time
from pathlib import Path

import gi

from benchmarks.streams.stamp import paint

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

PR_SET_PDEATHSIG = 1
NEEDED = ("appsrc", "x264enc", "rtph264pay")


def main() -> None:
    """Serves until its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether everything needed is there")
    parser.add_argument("--pictures", type=Path, help="raw I420 pictures, one after the other")
    parser.add_argument("--size", default="640x360", help="WIDTHxHEIGHT of them, even numbers")
    parser.add_argument("--fps", type=float, default=25.0)
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    arguments = parser.parse_args()
    Gst.init(None)
    missing = [name for name in NEEDED if Gst.ElementFactory.find(name) is None]
    if missing:
        raise SystemExit(f"GStreamer lacks {', '.join(missing)}")
    if arguments.check:
        return
    width, height = (int(text) for text in arguments.size.split("x"))
    camera = Camera(arguments.pictures, width, height, arguments.fps)
    server = GstRtspServer.RTSPServer.new()
    server.set_address("127.0.0.1")
    server.set_service(str(arguments.port))
    server.get_mount_points().add_factory("/cam", camera.factory)
    if server.attach(None) == 0:
        raise SystemExit(f"port {arguments.port} is taken")
    threading.Thread(target=camera.run, daemon=True).start()
    sys.stdout.write(f"ready {server.get_bound_port()}\n")
    sys.stdout.flush()
    GLib.timeout_add(500, lambda: server.get_session_pool().cleanup() >= 0)
    GLib.MainLoop().run()


class Camera:
    """Takes pictures at a fixed rate, with or without viewers."""

    def __init__(self, pictures: Path, width: int, height: int, fps: float) -> None:
        """Describes the pipeline; it starts with the first viewer."""
        num_bytes = width * height * 3 // 2
        data = pictures.read_bytes()
        self.pictures = [data[start : start + num_bytes] for start in range(0, len(data), num_bytes)]
        self.width, self.fps = width, fps
        self.source: Gst.Element | None = None
        self.factory = GstRtspServer.RTSPMediaFactory.new()
        self.factory.set_shared(True)
        rate = f"{round(fps * 1000)}/1000"
        self.factory.set_launch(
            "( appsrc name=source is-live=true format=time do-timestamp=true max-buffers=2 leaky-type=downstream "
            f"caps=video/x-raw,format=I420,width={width},height={height},framerate={rate} "
            "! x264enc tune=zerolatency speed-preset=ultrafast option-string=sliced-threads=0 threads=1 "
            f"key-int-max={max(1, round(fps))} bitrate=2000 ! rtph264pay name=pay0 pt=96 config-interval=-1 )"
        )
        self.factory.connect("media-configure", self.configure)

    def configure(self, factory: GstRtspServer.RTSPMediaFactory, media: GstRtspServer.RTSPMedia) -> None:
        """Feeds the pipeline that a viewer has started, until the last one goes."""
        self.source = media.get_element().get_by_name("source")
        media.connect("unprepared", self.forget)

    def forget(self, media: GstRtspServer.RTSPMedia) -> None:
        """Feeds nothing until the next viewer."""
        self.source = None

    def run(self) -> None:
        """Takes a picture whenever one is due."""
        index, due_s = 0, time.monotonic()
        while True:
            due_s = max(due_s + 1 / self.fps, time.monotonic() - 1 / self.fps)
            time.sleep(max(0.0, due_s - time.monotonic()))
            source = self.source
            if source is None:
                continue
            picture = bytearray(self.pictures[index % len(self.pictures)])
            paint(picture, self.width, time.monotonic())
            source.emit("push-buffer", Gst.Buffer.new_wrapped(bytes(picture)))
            index += 1


if __name__ == "__main__":
    main()
