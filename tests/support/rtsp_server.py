"""An RTSP camera for tests: GStreamer's test picture as H.264, on 127.0.0.1.

The system's Python runs it, because that has PyGObject and GStreamer's RTSP server library. It writes one line
`ready PORT` to standard output, then obeys one command per line on its standard input:

    size WIDTHxHEIGHT   the picture changes its size within the connection
    pause | resume      no more pictures, the connection stays
    quit                ends, as the end of the input does

It also ends with the process that started it.
"""

import argparse
import ctypes
import signal
import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serves until `quit`."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    arguments = parse_arguments()
    Gst.init(None)
    server = GstRtspServer.RTSPServer.new()
    server.set_address("127.0.0.1")
    server.set_service(str(arguments.port))
    camera = Camera(arguments)
    server.get_mount_points().add_factory(arguments.path, camera.factory)
    if arguments.password:
        require_password(server, camera.factory, arguments.user, arguments.password)
    if server.attach(None) == 0:
        raise SystemExit(f"port {arguments.port} is taken")
    loop = GLib.MainLoop()
    GLib.timeout_add(500, lambda: server.get_session_pool().cleanup() >= 0)
    threading.Thread(target=obey, args=(camera, loop), daemon=True).start()
    sys.stdout.write(f"ready {server.get_bound_port()}\n")
    sys.stdout.flush()
    loop.run()


def parse_arguments() -> argparse.Namespace:
    """Parses the properties of the camera."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--path", default="/cam")
    parser.add_argument("--size", default="320x240")
    parser.add_argument("--fps", type=int, default=20)
    parser.add_argument("--gop", type=int, default=20, help="frames from one key frame to the next")
    parser.add_argument("--kbps", type=int, default=800)
    parser.add_argument("--codec", choices=("h264", "mjpeg"), default="h264")
    parser.add_argument("--pattern", default="ball")
    parser.add_argument("--user", default="viewer")
    parser.add_argument("--password", default="")
    return parser.parse_args()


class Camera:
    """One encoder that all viewers share, as in a camera: later viewers join between key frames."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Describes the pipeline; it starts with the first viewer."""
        self.media: GstRtspServer.RTSPMedia | None = None
        encoder = {
            "h264": "x264enc tune=zerolatency speed-preset=ultrafast option-string=sliced-threads=0 "
            f"key-int-max={arguments.gop} bitrate={arguments.kbps} ! rtph264pay name=pay0 pt=96 config-interval=-1",
            # RTP has no JPEG with whole colours.
            "mjpeg": "video/x-raw,format=I420 ! jpegenc ! rtpjpegpay name=pay0 pt=26",
        }[arguments.codec]
        self.factory = GstRtspServer.RTSPMediaFactory.new()
        self.factory.set_launch(
            f"( videotestsrc is-live=true pattern={arguments.pattern} ! valve name=valve ! videoscale "
            f"! capsfilter name=size caps={caps_text(arguments.size, arguments.fps)} "
            f"! videoconvert ! {encoder} )"
        )
        self.factory.set_shared(True)
        self.size = arguments.size
        self.fps = arguments.fps
        self.factory.connect("media-configure", self.configure)

    def configure(self, factory: GstRtspServer.RTSPMediaFactory, media: GstRtspServer.RTSPMedia) -> None:
        """Keeps the pipeline for commands; a new one continues with the size of the last."""
        self.media = media
        self.element("size").set_property("caps", Gst.Caps.from_string(caps_text(self.size, self.fps)))

    def element(self, name: str) -> Gst.Element:
        """Returns an element of the running pipeline."""
        if self.media is None:
            raise RuntimeError("there is no pipeline before the first viewer")
        return self.media.get_element().get_by_name(name)

    def command(self, line: str) -> bool:
        """Obeys one line, which has no effect without a viewer. Returns False, so that GLib calls it once."""
        word, _, value = line.partition(" ")
        if self.media is None:
            return False
        if word == "size":
            self.size = value
            self.element("size").set_property("caps", Gst.Caps.from_string(caps_text(value, self.fps)))
        elif word in ("pause", "resume"):
            self.element("valve").set_property("drop", word == "pause")
        return False


def caps_text(size: str, fps: int) -> str:
    """Caps of raw pictures of one size."""
    width, _, height = size.partition("x")
    return f"video/x-raw,width={width},height={height},framerate={fps}/1"


def require_password(
    server: GstRtspServer.RTSPServer, factory: GstRtspServer.RTSPMediaFactory, user: str, password: str
) -> None:
    """Requires the login of `user`."""
    auth = GstRtspServer.RTSPAuth.new()
    token = GstRtspServer.RTSPToken.new()
    token.set_string("media.factory.role", "viewer")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions.new()
    permissions.add_permission_for_role("viewer", "media.factory.access", True)
    permissions.add_permission_for_role("viewer", "media.factory.construct", True)
    factory.set_permissions(permissions)


def obey(camera: Camera, loop: GLib.MainLoop) -> None:
    """Reads commands until the input ends."""
    for line in sys.stdin:
        if line.strip() == "quit":
            break
        GLib.idle_add(camera.command, line.strip())
    # In the loop, which may not run yet.
    GLib.idle_add(loop.quit)


if __name__ == "__main__":
    main()
