"""Settings of one source and its capture."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from edgerpn.errors import check_setting
from edgerpn.runtime.sources.spec import SourceSpec, expand_source, parse_source

Policy = Literal["auto", "latest", "every", "queue"]

NETWORK_PROTOCOLS = "tcp,udp,rtp,rtsp,srtp,tls,http,https,httpproxy,rtmp,srt,crypto,data"
"""Protocols that FFmpeg may open for a URL. Playlists inherit them: without `file`, no server can have this machine's
files read."""
FILE_PROTOCOLS = "file,crypto,data"
"""Protocols that FFmpeg may open for a file: no network."""

MAX_STALL_S, MAX_OPEN_S = 120.0, 60.0
"""Most seconds to which `stall_s` and `open_timeout_s` adapt by themselves."""
GAP_S = 1.0
"""Seconds without a frame that are a gap, of a camera of unknown pace."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptureConfig:
    """Settings of one source; the defaults suit a camera."""

    source: str = field(repr=False, metadata={"expand": expand_source})
    """Camera (number or /dev/videoN), csi://N, URL, GStreamer pipeline, video file, picture, folder or glob."""
    name: str = ""
    """Name in frames and events; empty: the source without its passwords."""
    policy: Policy = "auto"
    """latest: the newest frame wins; every: no frame is dropped; queue: the oldest of `queue_frames` is dropped; auto:
    latest for a live source, otherwise every."""
    queue_frames: int = 8
    """Most frames that wait under the policy `queue`."""
    max_fps: float = 0.0
    """Most frames per second; 0: no limit."""
    slots: int = 8
    """Frames of shared memory; frames that the consumer holds, that wait and that are being written must fit."""
    gap_s: float | None = None
    """Seconds without a frame that cause an event `gap`; None: 1, and three intervals of a slower camera."""
    stall_s: float | None = None
    """Seconds without a frame after which the capture process is killed and restarted; None: 10, and four intervals of
    a slower camera, up to 120; two intervals of `rate_hz` where those are longer."""
    open_timeout_s: float | None = None
    """Most seconds from connecting to the first frame; None: 10, and up to 60 for a server that answers slowly."""
    backoff_first_s: float = 1.0
    """Seconds before the second attempt; doubled for each further one, with jitter of up to half downwards."""
    backoff_max_s: float = 30.0
    """Most seconds between attempts."""
    healthy_s: float = 10.0
    """Seconds with frames that reset the backoff to `backoff_first_s`."""
    size_wh: tuple[int, int] | None = None
    """Requested width and height of a camera, pixels; None: its default. The hardware decoder of a Jetson scales the
    pictures of a URL or file to it; boxes are in pixels of the scaled picture then."""
    rate_hz: float | None = None
    """Requested frames per second of a camera; None: its default. An HTTP address of one picture is requested so
    often; None: once a second."""
    pixel_format: str = ""
    """Requested four-character format of a V4L2 camera, such as MJPG or YUYV; empty: its default."""
    transport: Literal["tcp", "udp"] = "tcp"
    """Transport of RTSP."""
    decoder: Literal["auto", "ffmpeg", "gstreamer", "ffmpeg-process", "picture"] = "auto"
    """Decoder of URLs and files: OpenCV with FFmpeg, OpenCV with GStreamer, or the program ffmpeg; picture: an HTTP
    address that gives one picture for each request, as auto finds out by itself. When a stream changes its size within
    a connection, GStreamer follows; OpenCV with FFmpeg reconnects for H.264 and scales to the first size for other
    codecs, as the program does."""
    codec: Literal["auto", "h264", "h265", "mjpeg"] = "auto"
    """Codec of a URL or file for the hardware decoder of a Jetson; auto: FFmpeg asks, over a connection of its own."""
    channels: Literal["auto", "bgr", "bgrx"] = "auto"
    """bgrx: the pictures of a Jetson's hardware, and of a pipeline that ends in BGRx, keep their fourth channel, which
    saves their conversion on the CPU; auto: as the model of the run takes them, bgr without a model."""
    network_hw: tuple[int, int] | None = None
    """Height and width of the network's input, into which the hardware decoder of a Jetson scales pictures of a known
    larger size; boxes stay in pixels of the camera. The run sets it when its model takes frames of any size and none of
    its outputs looks at pictures; None: no scaling."""
    decoder_threads: int = 0
    """Threads of OpenCV's FFmpeg; 0: one for a URL, half of the cores for a file. Each thread after the first delays
    the pictures of a stream by one frame."""
    ffmpeg_options: str = field(default="", repr=False)
    """Options for FFmpeg in OpenCV's form, key;value|key;value, beside our own. The environment variable
    OPENCV_FFMPEG_CAPTURE_OPTIONS replaces all of them."""

    def __post_init__(self) -> None:
        """Checks everything that needs no open source."""
        parse_source(self.source)
        check_setting(
            self.policy in ("auto", "latest", "every", "queue"), "policy", "auto, latest, every or queue", self.policy
        )
        check_setting(self.transport in ("tcp", "udp"), "transport", "tcp or udp", self.transport)
        decoders = ("auto", "ffmpeg", "gstreamer", "ffmpeg-process", "picture")
        check_setting(self.decoder in decoders, "decoder", ", ".join(decoders), self.decoder)
        codecs = ("auto", "h264", "h265", "mjpeg")
        check_setting(self.codec in codecs, "codec", ", ".join(codecs), self.codec)
        channels = ("auto", "bgr", "bgrx")
        check_setting(self.channels in channels, "channels", ", ".join(channels), self.channels)
        # All slots may return at once over a socket that never blocks.
        check_setting(1 <= self.queue_frames <= 100, "queue_frames", "1 to 100", self.queue_frames)
        check_setting(2 <= self.slots <= 100, "slots", "2 to 100", self.slots)
        check_setting(0 <= self.decoder_threads <= 64, "decoder_threads", "0 to 64", self.decoder_threads)
        check_setting(math.isfinite(self.max_fps) and self.max_fps >= 0, "max_fps", "0 or more", self.max_fps)
        for name in ("gap_s", "stall_s", "open_timeout_s", "backoff_first_s", "healthy_s"):
            value = getattr(self, name)
            check_setting(value is None or (math.isfinite(value) and value > 0), name, "a time above 0 s", value)
        is_rate = self.rate_hz is None or (math.isfinite(self.rate_hz) and self.rate_hz > 0)
        check_setting(is_rate, "rate_hz", "a rate above 0", self.rate_hz)
        if self.stall_s is not None:
            gap_s, period_s = self.gap_s or GAP_S, 1 / self.rate_hz if self.rate_hz else 0.0
            check_setting(self.stall_s > gap_s, "stall_s", f"more than gap_s ({gap_s})", self.stall_s)
            text = f"more than the {period_s:g} s between two frames of rate_hz"
            check_setting(self.stall_s > period_s, "stall_s", text, self.stall_s)
        is_ordered = math.isfinite(self.backoff_max_s) and self.backoff_max_s >= self.backoff_first_s
        check_setting(
            is_ordered, "backoff_max_s", f"at least backoff_first_s ({self.backoff_first_s})", self.backoff_max_s
        )
        is_size = self.size_wh is None or (len(self.size_wh) == 2 and min(self.size_wh) > 0)
        check_setting(is_size, "size_wh", "two positive sizes", self.size_wh)
        is_size = self.network_hw is None or (len(self.network_hw) == 2 and min(self.network_hw) > 0)
        check_setting(is_size, "network_hw", "two positive sizes", self.network_hw)
        check_setting(len(self.pixel_format) in (0, 4), "pixel_format", "four characters", self.pixel_format)

    @property
    def spec(self) -> SourceSpec:
        """The source, parsed."""
        return parse_source(self.source)

    @property
    def label(self) -> str:
        """Name in records and messages, without passwords."""
        return self.name or self.spec.shown

    @property
    def longest_stall_s(self) -> float:
        """The silence that ends a connection at the latest, seconds."""
        if self.stall_s is not None:
            return self.stall_s
        # Pictures that are requested still more slowly.
        return max(MAX_STALL_S, 2 / self.rate_hz) if self.rate_hz else MAX_STALL_S

    @property
    def longest_open_s(self) -> float:
        """The time until the first frame at the latest, seconds."""
        return MAX_OPEN_S if self.open_timeout_s is None else self.open_timeout_s

    @property
    def num_slots(self) -> int:
        """Slots of shared memory, with room for the queue."""
        return self.slots + (self.queue_frames if self.policy == "queue" else 0)
