"""GStreamer pipelines of sources, which end in an appsink for OpenCV.

On a Jetson nvv4l2decoder decodes into the memory of the GPU, nvvidconv scales there and copies the picture out, and the
CPU only drops the fourth channel for a model that does not take it. None of this was run on a Jetson: tests parse these
pipelines with software elements in their place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from edgerpn.runtime.sources.capture_config import CaptureConfig

Codec = Literal["h264", "h265", "mjpeg"]

_LIVE_SINK = "appsink drop=true max-buffers=1 sync=false"
# A file waits for its reader; a stream does not.
_FILE_SINK = "appsink drop=false max-buffers=2 sync=false"
_DEPAYLOADERS: dict[Codec, str] = {"h264": "rtph264depay", "h265": "rtph265depay", "mjpeg": "rtpjpegdepay"}
_PARSERS: dict[Codec, str] = {"h264": "h264parse", "h265": "h265parse", "mjpeg": "jpegparse"}
_MEDIA: dict[Codec, str] = {"h264": "video/x-h264", "h265": "video/x-h265", "mjpeg": "image/jpeg"}
_DECODERS: dict[Codec | None, str] = {
    "h264": "nvv4l2decoder enable-max-performance=1",
    "h265": "nvv4l2decoder enable-max-performance=1",
    "mjpeg": "nvv4l2decoder mjpeg=1",
    None: "nvv4l2decoder enable-max-performance=1",
}
# The first bytes of a file, and their place.
_CONTAINERS = (
    (4, b"ftyp", "qtdemux"),
    (0, b"\x1a\x45\xdf\xa3", "matroskademux"),
    (8, b"AVI ", "avidemux"),
    (0, b"\x47", "tsdemux"),
)


def pipeline_of(
    config: CaptureConfig, *, codec: Codec | None = None, is_hardware: bool, scaled_wh: tuple[int, int] | None = None
) -> str:
    """Returns the pipeline of a source.

    Args:
        config: A camera, CSI camera, URL or file; its `size_wh` is the size to which the hardware scales.
        codec: Codec of the video; None: unknown, a parser finds it out.
        is_hardware: Whether the hardware of a Jetson decodes and scales; a CSI camera always needs it.
        scaled_wh: Width and height to which the hardware scales in the place of `size_wh`, pixels; None: neither.
    """
    kind = config.spec.kind
    if kind == "csi":
        return f"{_csi(config)} ! {_from_hardware(config, scaled_wh)} ! {_LIVE_SINK}"
    sink = _LIVE_SINK if config.spec.is_live else _FILE_SINK
    if not is_hardware:
        return f"{_software_head(config)} ! videoconvert ! video/x-raw,format=BGR ! {sink}"
    heads = {"camera": _usb, "path": _file}
    head = heads[kind](config, codec) if kind in heads else (_rtsp if config.spec.is_rtsp else _http)(config, codec)
    # The camera itself has the size.
    size_wh = scaled_wh or (None if kind == "camera" else config.size_wh)
    return f"{head} ! {_DECODERS[codec]} ! {_from_hardware(config, size_wh)} ! {sink}"


def quoted(value: str) -> str:
    """Quotes a value for a GStreamer pipeline."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _from_hardware(config: CaptureConfig, size_wh: tuple[int, int] | None) -> str:
    """Scales and copies to the CPU; nvvidconv converts to four channels only, and videoconvert drops the last."""
    size = f",width={size_wh[0]},height={size_wh[1]}" if size_wh is not None else ""
    # As OpenCV scales on the CPU; the default takes the nearest pixel.
    converter = "nvvidconv interpolation-method=1" if size else "nvvidconv"
    copied = f"{converter} ! video/x-raw,format=BGRx{size}"
    return copied if config.channels == "bgrx" else f"{copied} ! videoconvert ! video/x-raw,format=BGR"


def _csi(config: CaptureConfig) -> str:
    sensor = config.source.rpartition("/")[2]
    return f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM){_wishes(config)},format=NV12"


def _usb(config: CaptureConfig, codec: Codec | None) -> str:
    return f"v4l2src device={quoted(config.spec.device)} ! image/jpeg{_wishes(config)} ! jpegparse"


def _wishes(config: CaptureConfig) -> str:
    size, rate = "", ""
    if config.size_wh is not None:
        size = f",width={config.size_wh[0]},height={config.size_wh[1]}"
    if config.rate_hz is not None:
        rate = f",framerate={round(config.rate_hz * 1000)}/1000"
    return size + rate


def _rtsp(config: CaptureConfig, codec: Codec | None) -> str:
    source = f"rtspsrc location={quoted(config.source)} protocols={config.transport} latency=200 drop-on-latency=true"
    # Cameras with sound offer a second stream.
    head = f"{source} ! application/x-rtp,media=video"
    return f"{head} ! {f'{_DEPAYLOADERS[codec]} ! {_PARSERS[codec]}' if codec else 'parsebin'}"


def _http(config: CaptureConfig, codec: Codec | None) -> str:
    parts = urlsplit(config.source)
    url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    login = ""
    if parts.username is not None:
        login = f" user-id={quoted(unquote(parts.username))} user-pw={quoted(unquote(parts.password or ''))}"
    # Cameras sign their own certificates, and FFmpeg does not check them either.
    source = f"souphttpsrc location={quoted(url)}{login} is-live=true do-timestamp=true ssl-strict=false"
    rest = "multipartdemux single-stream=true ! image/jpeg ! jpegparse" if codec == "mjpeg" else "parsebin"
    return f"{source} ! {rest}"


def _file(config: CaptureConfig, codec: Codec | None) -> str:
    path = Path(config.spec.path).resolve()
    demuxer = _demuxer(path) if codec else None
    rest = f"{demuxer} ! {_MEDIA[codec]} ! {_PARSERS[codec]}" if codec and demuxer else "parsebin"
    try:
        str(path).encode()
    except UnicodeEncodeError:
        # OpenCV takes no such text; a URL escapes its bytes.
        return f"urisourcebin uri={quoted(path.as_uri())} ! {rest}"
    return f"filesrc location={quoted(str(path))} ! {rest}"


def _demuxer(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        # The pipeline says so.
        return None
    return next((name for place, magic, name in _CONTAINERS if head[place:].startswith(magic)), None)


def _software_head(config: CaptureConfig) -> str:
    spec = config.spec
    if spec.is_rtsp:
        return f"{_rtsp(config, None).removesuffix('parsebin')}decodebin"
    uri = spec.text if spec.is_live else Path(spec.path).resolve().as_uri()
    return f"uridecodebin uri={quoted(uri)}"
