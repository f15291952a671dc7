"""Choice of the decoder for a source on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple

from edgerpn.letterbox import letterbox
from edgerpn.machine import board_model
from edgerpn.runtime.sources.capture_config import CaptureConfig
from edgerpn.runtime.sources.failures import CaptureFailedError
from edgerpn.runtime.sources.pipelines import Codec, pipeline_of

Decoder = Literal["ffmpeg", "gstreamer", "v4l2", "any", "ffmpeg-process", "picture"]

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
    has_nvjpeg: bool
    """The hardware decoder reads JPEG too, as all but those of Thor do."""


class VideoFacts(NamedTuple):
    """Facts about a video before it is decoded."""

    codec: Codec | None = None
    """None: unknown, or another one."""
    hw: tuple[int, int] | None = None
    """Height and width of its pictures, pixels; None: unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A decoder, and why it was chosen."""

    decoder: Decoder
    """The decoder."""
    why: str
    """One line for people."""
    pipeline: str = ""
    """GStreamer pipeline, where that decodes; it may hold a password."""
    camera_hw: tuple[int, int] | None = None
    """Height and width of the camera's pictures, pixels, where the pipeline makes them smaller; None: it does not."""


Probe = Callable[[], VideoFacts]


def find_abilities(cv2: ModuleType) -> Abilities:
    """Inspects OpenCV and this machine."""
    has = cv2.videoio_registry.hasBackend
    plugins = Path("/usr/lib/aarch64-linux-gnu/gstreamer-1.0")
    has_nvv4l2 = (plugins / "libgstnvvideo4linux2.so").exists()
    return Abilities(
        has_ffmpeg=has(cv2.CAP_FFMPEG),
        has_gstreamer=has(cv2.CAP_GSTREAMER),
        has_v4l2=has(cv2.CAP_V4L2),
        has_program=shutil.which("ffmpeg") is not None,
        has_nvv4l2=has_nvv4l2,
        has_nvjpeg=has_nvv4l2 and "Thor" not in (board_model() or ""),
    )


def choose(config: CaptureConfig, abilities: Abilities, probe: Probe = VideoFacts) -> Choice:
    """Chooses the decoder for a source that is not a picture.

    Args:
        config: The source.
        abilities: The decoders of this machine.
        probe: Asks the source for its codec and size, where a choice depends on them; may raise CaptureFailedError.

    Raises:
        CaptureFailedError: No decoder here can read it, or the requested one cannot.
    """
    kind = config.spec.kind
    if kind in ("pipeline", "csi"):
        if not abilities.has_gstreamer:
            raise CaptureFailedError(_NO_GSTREAMER, reason="unsupported", is_final=True)
        if kind == "pipeline":
            return Choice(decoder="gstreamer", why="the source is a GStreamer pipeline", pipeline=config.source)
        return _in_hardware(config, _asked_facts(config, None), "nvarguscamerasrc, the camera interface of Jetson")
    if kind == "camera":
        is_asked = config.decoder == "gstreamer" and config.pixel_format == "MJPG"
        if is_asked and (hardware := _hardware(config, abilities, lambda: _asked_facts(config, "mjpeg"))):
            return hardware
        if abilities.has_v4l2:
            return Choice(decoder="v4l2", why="the source is a Video4Linux camera")
        return Choice(decoder="any", why="this OpenCV is built without Video4Linux")
    if config.decoder != "auto":
        return _choose_explicit(config, abilities, probe)
    return _choose_auto(config, abilities, probe)


def _hardware(config: CaptureConfig, abilities: Abilities, probe: Probe) -> Choice | None:
    """Returns the choice of a Jetson's hardware decoder; None: there is none for this source."""
    spec = config.spec
    is_known = spec.kind in ("camera", "path") or spec.is_rtsp or spec.is_http
    if not (is_known and abilities.has_nvv4l2 and abilities.has_gstreamer):
        return None
    facts = VideoFacts(config.codec) if config.codec != "auto" else probe() if abilities.has_ffmpeg else VideoFacts()
    codec = facts.codec
    # A camera of unknown codec may have one that only the pipeline's parser knows.
    if (codec is None and not spec.is_rtsp) or (codec == "mjpeg" and not abilities.has_nvjpeg):
        return None
    why = f"the hardware decoder of this Jetson (nvv4l2decoder{f', {codec}' if codec else ''})"
    return _in_hardware(config, facts, why)


def _asked_facts(config: CaptureConfig, codec: Codec | None) -> VideoFacts:
    """Returns what a camera of this machine delivers: the size that it is asked for."""
    return VideoFacts(codec, None if config.size_wh is None else config.size_wh[::-1])


def _in_hardware(config: CaptureConfig, facts: VideoFacts, why: str) -> Choice:
    scaled_wh = _network_wh(config, facts.hw)
    note = "" if scaled_wh is None else f"; scaled to {scaled_wh[0]}x{scaled_wh[1]} for the network"
    return Choice(
        decoder="gstreamer",
        why=f"{why}{note}",
        pipeline=pipeline_of(config, codec=facts.codec, is_hardware=True, scaled_wh=scaled_wh),
        camera_hw=None if scaled_wh is None else facts.hw,
    )


def _network_wh(config: CaptureConfig, camera_hw: tuple[int, int] | None) -> tuple[int, int] | None:
    """Returns width and height of the camera's picture inside the network's input; None: it is not to be scaled."""
    is_asked_smaller = config.size_wh is not None and config.spec.kind in ("url", "path")
    if config.network_hw is None or camera_hw is None or is_asked_smaller:
        return None
    height, width = letterbox(camera_hw, config.network_hw).content_hw
    # The hardware's formats share colours between neighbours, so their sizes are even.
    is_smaller = height < camera_hw[0] and width < camera_hw[1] and not (height % 2 or width % 2)
    return (width, height) if is_smaller else None


def _choose_explicit(config: CaptureConfig, abilities: Abilities, probe: Probe) -> Choice:
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
        software = Choice(decoder="gstreamer", why=why, pipeline=pipeline_of(config, is_hardware=False))
        return _hardware(config, abilities, probe) or software
    missing = {
        "ffmpeg": "this OpenCV is built without FFmpeg; try decoder=ffmpeg-process or decoder=gstreamer",
        "ffmpeg-process": "the program ffmpeg is not installed (sudo apt install ffmpeg)",
        "gstreamer": _NO_GSTREAMER,
    }[config.decoder]
    raise CaptureFailedError(f"decoder={config.decoder}: {missing}", reason="unsupported", is_final=True)


def _choose_auto(config: CaptureConfig, abilities: Abilities, probe: Probe) -> Choice:
    is_camera = config.spec.is_rtsp or config.spec.is_http
    if is_camera and (hardware := _hardware(config, abilities, probe)):
        return hardware
    if abilities.has_ffmpeg:
        lack = "this OpenCV is built without GStreamer, so the Jetson's hardware decoder is not usable"
        has_unused = is_camera and abilities.has_nvv4l2 and not abilities.has_gstreamer
        why = lack if has_unused else "OpenCV's FFmpeg decodes in software"
        return Choice(decoder="ffmpeg", why=why)
    if abilities.has_program:
        return Choice(
            decoder="ffmpeg-process", why="this OpenCV is built without FFmpeg, and the program ffmpeg is installed"
        )
    if abilities.has_gstreamer:
        why = "this OpenCV is built without FFmpeg"
        return Choice(decoder="gstreamer", why=why, pipeline=pipeline_of(config, is_hardware=False))
    raise CaptureFailedError(
        "no decoder here: this OpenCV is built without FFmpeg and without GStreamer, and the program ffmpeg "
        "is not installed (sudo apt install ffmpeg)",
        reason="unsupported",
        is_final=True,
    )
