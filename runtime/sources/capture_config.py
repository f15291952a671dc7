"""What one source is and how it is captured."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from edgerpn.runtime.sources.spec import SourceSpec, parse_source

Policy = Literal["auto", "latest", "every", "queue"]

NETWORK_PROTOCOLS = "tcp,udp,rtp,rtsp,srtp,tls,http,https,httpproxy,rtmp,srt,crypto,data"
"""What FFmpeg may open for a URL. Playlists inherit it: without `file`, no server has us read files of this machine."""
FILE_PROTOCOLS = "file,crypto,data"
"""What FFmpeg may open for a file: no network."""

_POLICY = re.compile(r"(?P<word>auto|latest|every)|queue=(?P<frames>\d+)|fps=(?P<fps>\d+(?:\.\d+)?)")


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptureConfig:
    """One source of frames; everything but `source` has a default that suits a camera."""

    source: str = field(repr=False)
    """Camera (number or /dev/videoN), csi://N, URL, GStreamer pipeline, video file, picture, folder or glob."""
    name: str = ""
    """Name in frames and events; empty: the source without its passwords."""
    policy: Policy = "auto"
    """latest: newest frame wins; every: none is dropped; queue: oldest of `queue_frames` is dropped; auto: latest if
    the source is live, otherwise every."""
    queue_frames: int = 8
    """Frames that wait at most under the policy `queue`."""
    max_fps: float = 0.0
    """Frames per second at most; 0: as many as come."""
    slots: int = 8
    """Frames of shared memory; what the consumer holds, what waits and what is being written must fit."""
    gap_s: float = 1.0
    """Seconds without a frame that are worth an event `gap`."""
    stall_s: float = 10.0
    """Seconds without a frame after which the capture process is killed and started again."""
    open_timeout_s: float = 10.0
    """Seconds from connecting to the first frame at most."""
    backoff_first_s: float = 1.0
    """Seconds before the second attempt; doubled for each further one, and jittered downwards by up to a half."""
    backoff_max_s: float = 30.0
    """Seconds between attempts at most."""
    healthy_s: float = 10.0
    """Seconds of frames after which the next failure starts at `backoff_first_s` again."""
    size_wh: tuple[int, int] | None = None
    """Width and height to ask a camera for, pixels; None: its default."""
    rate_hz: float | None = None
    """Frames per second to ask a camera for; None: its default."""
    pixel_format: str = ""
    """Four characters that a V4L2 camera knows, such as MJPG or YUYV; empty: its default."""
    transport: Literal["tcp", "udp"] = "tcp"
    """How RTSP carries the video."""
    decoder: Literal["auto", "ffmpeg", "gstreamer", "ffmpeg-process"] = "auto"
    """What decodes URLs and files: OpenCV with FFmpeg, OpenCV with GStreamer, or the program ffmpeg. When a stream
    changes its size within a connection, GStreamer follows, FFmpeg in OpenCV is connected anew for H.264, and scales
    to the first size for other codecs, as the program does."""
    decoder_threads: int = 0
    """Threads of OpenCV's FFmpeg; 0: one for a URL, half of the cores for a file. Each thread but the first delays the
    pictures of a stream by one frame."""
    ffmpeg_options: str = field(default="", repr=False)
    """Options for FFmpeg in OpenCV's form, key;value|key;value, beside our own. The environment variable
    OPENCV_FFMPEG_CAPTURE_OPTIONS replaces all of them."""

    def __post_init__(self) -> None:
        """Checks what can be checked without opening the source."""
        parse_source(self.source)
        _check(
            self.policy in ("auto", "latest", "every", "queue"), "policy", "auto, latest, every or queue", self.policy
        )
        _check(self.transport in ("tcp", "udp"), "transport", "tcp or udp", self.transport)
        decoders = ("auto", "ffmpeg", "gstreamer", "ffmpeg-process")
        _check(self.decoder in decoders, "decoder", ", ".join(decoders), self.decoder)
        # Every slot may be on its way back at once, and the socket for that never waits.
        _check(1 <= self.queue_frames <= 100, "queue_frames", "1 to 100", self.queue_frames)
        _check(2 <= self.slots <= 100, "slots", "2 to 100", self.slots)
        _check(0 <= self.decoder_threads <= 64, "decoder_threads", "0 to 64", self.decoder_threads)
        _check(math.isfinite(self.max_fps) and self.max_fps >= 0, "max_fps", "0 or more", self.max_fps)
        for name in ("gap_s", "stall_s", "open_timeout_s", "backoff_first_s", "healthy_s"):
            value = getattr(self, name)
            _check(math.isfinite(value) and value > 0, name, "a time above 0 s", value)
        _check(self.stall_s > self.gap_s, "stall_s", f"more than gap_s ({self.gap_s})", self.stall_s)
        is_ordered = math.isfinite(self.backoff_max_s) and self.backoff_max_s >= self.backoff_first_s
        _check(is_ordered, "backoff_max_s", f"at least backoff_first_s ({self.backoff_first_s})", self.backoff_max_s)
        is_size = self.size_wh is None or (len(self.size_wh) == 2 and min(self.size_wh) > 0)
        _check(is_size, "size_wh", "two positive sizes", self.size_wh)
        _check(self.rate_hz is None or self.rate_hz > 0, "rate_hz", "a rate above 0", self.rate_hz)
        _check(len(self.pixel_format) in (0, 4), "pixel_format", "four characters", self.pixel_format)

    @property
    def spec(self) -> SourceSpec:
        """The source, parsed."""
        return parse_source(self.source)

    @property
    def label(self) -> str:
        """Name for people and records, without passwords."""
        return self.name or self.spec.shown

    @property
    def num_slots(self) -> int:
        """Frames of shared memory, with room for the queue."""
        return self.slots + (self.queue_frames if self.policy == "queue" else 0)


def parse_policy(text: str) -> dict[str, Any]:
    """The settings that a policy in one text stands for.

    Args:
        text: latest, every, queue=N or auto, and fps=N, separated by commas ("queue=4,fps=10").

    Returns:
        `policy`, `queue_frames` and `max_fps` as far as they are told, for `CaptureConfig`.

    Raises:
        ValueError: It is none of these.
    """
    found: dict[str, Any] = {}
    for part in text.split(","):
        told = _POLICY.fullmatch(part.strip())
        if told is None:
            raise ValueError(f"policy: expected latest, every, queue=N or fps=N, got {part!r}")
        if told["word"]:
            found["policy"] = told["word"]
        elif told["frames"]:
            found |= {"policy": "queue", "queue_frames": int(told["frames"])}
        else:
            found["max_fps"] = float(told["fps"])
    return found


def _check(is_good: bool, name: str, expected: str, value: object) -> None:
    if not is_good:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
