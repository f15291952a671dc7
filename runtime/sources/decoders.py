"""Choice of the decoder for a source on this machine, and GStreamer pipelines."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from edgerpn.runtime.sources.capture_config import CaptureConfig
from edgerpn.runtime.sources.failures import CaptureFailedError

Decoder = Literal["ffmpeg", "gstreamer", "v4l2", "any", "ffmpeg-process", "picture"]

_APPSINK = "appsink drop=true max-buffers=1 sync=false"
# The GPU converts to four channels only; the CPU does the last step to three.
_FROM_NVMM = f"nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! {_APPSINK}"
_NO_GSTREAMER = (
    "this OpenCV is built without GStreamer, as all OpenCV packages of PyPI are. Use the system's OpenCV (sudo apt "
    "install python3-opencv) in a virtual environment made with --system-site-packages, without opencv-python in it"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Abilities:
    """Decoders of this machine."""

    has_ffmpeg: bool
    """OpenCV is built with FFmpeg."""
    has_gstreamer: bool
    """OpenCV is built with GStreamer."""
    has_v4l2: bool
    """OpenCV is built with Video4Linux."""
    has_program: bool
    """The program ffmpeg is installed."""
    has_nvv4l2: bool
    """A Jetson whose GStreamer has the hardware decoder nvv4l2decoder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A decoder, and why it was chosen."""

    decoder: Decoder
    """The decoder."""
    why: str
    """One line for people."""
    pipeline: str = ""
    """GStreamer pipeline, where that decodes; it may hold a password."""


def find_abilities(cv2: ModuleType) -> Abilities:
    """Inspects OpenCV and this machine."""
    has = cv2.videoio_registry.hasBackend
    plugins = Path("/usr/lib/aarch64-linux-gnu/gstreamer-1.0")
    return Abilities(
        has_ffmpeg=has(cv2.CAP_FFMPEG),
        has_gstreamer=has(cv2.CAP_GSTREAMER),
        has_v4l2=has(cv2.CAP_V4L2),
        has_program=shutil.which("ffmpeg") is not None,
        has_nvv4l2=(plugins / "libgstnvvideo4linux2.so").exists(),
    )


def choose(config: CaptureConfig, abilities: Abilities) -> Choice:
    """Chooses the decoder for a source that is not a picture.

    Raises:
        CaptureFailedError: No decoder here can read it, or the requested one cannot.
    """
    kind = config.spec.kind
    if kind in ("pipeline", "csi"):
        if not abilities.has_gstreamer:
            raise CaptureFailedError(_NO_GSTREAMER, reason="unsupported", is_final=True)
        if kind == "pipeline":
            return Choice(decoder="gstreamer", why="the source is a GStreamer pipeline", pipeline=config.source)
        why = "nvarguscamerasrc, the camera interface of Jetson"
        return Choice(decoder="gstreamer", why=why, pipeline=csi_pipeline(config))
    if kind == "camera":
        if abilities.has_v4l2:
            return Choice(decoder="v4l2", why="the source is a Video4Linux camera")
        return Choice(decoder="any", why="this OpenCV is built without Video4Linux")
    return _choose_explicit(config, abilities) if config.decoder != "auto" else _choose_auto(config, abilities)


def _choose_explicit(config: CaptureConfig, abilities: Abilities) -> Choice:
    why = f"requested (decoder={config.decoder})"
    if config.decoder == "picture":
        if not config.spec.is_http:
            message = "decoder=picture: expected an address of http or https"
            raise CaptureFailedError(message, reason="unsupported", is_final=True)
        return Choice(decoder="picture", why=why)
    if config.decoder == "ffmpeg" and abilities.has_ffmpeg:
        return Choice(decoder="ffmpeg", why=why)
    if config.decoder == "ffmpeg-process" and abilities.has_program:
        return Choice(decoder="ffmpeg-process", why=why)
    if config.decoder == "gstreamer" and abilities.has_gstreamer:
        return Choice(decoder="gstreamer", why=why, pipeline=_gstreamer_pipeline(config, abilities))
    missing = {
        "ffmpeg": "this OpenCV is built without FFmpeg; try decoder=ffmpeg-process or decoder=gstreamer",
        "ffmpeg-process": "the program ffmpeg is not installed (sudo apt install ffmpeg)",
        "gstreamer": _NO_GSTREAMER,
    }[config.decoder]
    raise CaptureFailedError(f"decoder={config.decoder}: {missing}", reason="unsupported", is_final=True)


def _choose_auto(config: CaptureConfig, abilities: Abilities) -> Choice:
    is_rtsp = config.spec.is_rtsp
    if is_rtsp and abilities.has_nvv4l2 and abilities.has_gstreamer:
        why = "the hardware decoder of this Jetson (nvv4l2decoder)"
        return Choice(decoder="gstreamer", why=why, pipeline=rtsp_pipeline(config, is_hardware=True))
    if abilities.has_ffmpeg:
        lack = "this OpenCV is built without GStreamer, so the Jetson's hardware decoder is not usable"
        why = lack if is_rtsp and abilities.has_nvv4l2 else "OpenCV's FFmpeg decodes in software"
        return Choice(decoder="ffmpeg", why=why)
    if abilities.has_program:
        return Choice(
            decoder="ffmpeg-process", why="this OpenCV is built without FFmpeg, and the program ffmpeg is installed"
        )
    if abilities.has_gstreamer:
        why = "this OpenCV is built without FFmpeg"
        return Choice(decoder="gstreamer", why=why, pipeline=_gstreamer_pipeline(config, abilities))
    raise CaptureFailedError(
        "no decoder here: this OpenCV is built without FFmpeg and without GStreamer, and the program ffmpeg "
        "is not installed (sudo apt install ffmpeg)",
        reason="unsupported",
        is_final=True,
    )


def csi_pipeline(config: CaptureConfig) -> str:
    """Returns the pipeline of a camera on a Jetson's CSI connector; not tested on a Jetson."""
    caps = ["video/x-raw(memory:NVMM)"]
    if config.size_wh is not None:
        caps.append(f"width={config.size_wh[0]},height={config.size_wh[1]}")
    if config.rate_hz is not None:
        caps.append(f"framerate={round(config.rate_hz * 1000)}/1000")
    sensor = config.source.rpartition("/")[2]
    return f"nvarguscamerasrc sensor-id={sensor} ! {','.join(caps)},format=NV12 ! {_FROM_NVMM}"


def rtsp_pipeline(config: CaptureConfig, *, is_hardware: bool) -> str:
    """Returns the pipeline of an RTSP camera; the one for the Jetson's decoder is not tested on a Jetson."""
    source = f"rtspsrc location={quoted(config.source)} protocols={config.transport} latency=200 drop-on-latency=true"
    # Cameras with sound offer a second stream.
    head = f"{source} ! application/x-rtp,media=video"
    if is_hardware:
        return f"{head} ! parsebin ! nvv4l2decoder ! {_FROM_NVMM}"
    return f"{head} ! decodebin ! videoconvert ! video/x-raw,format=BGR ! {_APPSINK}"


def quoted(value: str) -> str:
    """Quotes a value for a GStreamer pipeline."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _gstreamer_pipeline(config: CaptureConfig, abilities: Abilities) -> str:
    spec = config.spec
    if spec.is_rtsp:
        return rtsp_pipeline(config, is_hardware=abilities.has_nvv4l2)
    uri = spec.text if spec.is_live else Path(spec.path).resolve().as_uri()
    # A file waits for its reader; a stream does not.
    sink = _APPSINK if spec.is_live else "appsink drop=false max-buffers=2 sync=false"
    return f"uridecodebin uri={quoted(uri)} ! videoconvert ! video/x-raw,format=BGR ! {sink}"
