"""Distance between the key frames of a video, measured by the program ffprobe over a separate connection.

ffprobe reads the address from its standard input, as in `edgerpn.runtime.sources.ffmpeg_reader`, so that the list of
processes shows no password.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from edgerpn.machine import run_tool
from edgerpn.runtime.sources import CaptureConfig, CaptureFailedError
from edgerpn.runtime.sources.ffmpeg_reader import list_protocols, playlist
from edgerpn.runtime.sources.file_sources import is_still

_LIVE_S = 10.0
_FILE_S = 60.0
"""Seconds of video to read, of a stream and of a file."""

_OPEN_S = 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyFrames:
    """ffprobe's measurements of a video; None and empty texts: unknown."""

    codec: str = ""
    """Codec and its profile."""
    interval_s: float | None = None
    """Longest time between two key frames, seconds."""
    interval_frames: int | None = None
    """Most frames between two key frames."""
    longer_than_s: float | None = None
    """Seconds of video that held one key frame or none."""
    bits_per_s: float | None = None
    """Bit rate of the video."""
    why_unknown: str = ""
    """Reason why the interval is unknown."""


def find_key_frames(config: CaptureConfig) -> KeyFrames:
    """Reads a video file or URL for some seconds; returns the reason instead of raising when that fails."""
    kind = config.spec.kind
    if kind not in ("url", "path") or (kind == "path" and not _is_video(config.spec.path)):
        return KeyFrames(why_unknown="only video files and URLs have key frames to read")
    seconds = _LIVE_S if kind == "url" else _FILE_S
    program = shutil.which("ffprobe")
    if program is None:
        return KeyFrames(why_unknown="the program ffprobe is not installed (sudo apt install ffmpeg)")
    command = [
        *(program, "-hide_banner", "-loglevel", "error", "-protocol_whitelist", list_protocols(config)),
        *("-f", "concat", "-safe", "0", "-i", "pipe:0", "-select_streams", "v:0"),
        *("-read_intervals", f"%+{seconds:g}", "-of", "compact=nokey=0"),
        *("-show_entries", "packet=pts_time,dts_time,size,flags:stream=codec_name,profile"),
    ]
    try:
        data = playlist(config).encode("utf-8", "surrogateescape")
        _, output = run_tool(command, timeout_s=seconds + _OPEN_S, data=data)
    except (OSError, CaptureFailedError) as error:
        return KeyFrames(why_unknown=f"ffprobe: {error}")
    return read_packets(output.decode("utf-8", "replace").splitlines())


def read_packets(lines: Sequence[str]) -> KeyFrames:
    """Parses ffprobe's compact lines, such as packet|pts_time=0.05|dts_time=0.05|size=454|flags=K__."""
    codec = ""
    times: list[float | None] = []
    keys: list[int] = []
    num_bytes = 0
    for line in lines:
        kind, _, rest = line.partition("|")
        values = dict(part.partition("=")[::2] for part in rest.split("|"))
        if kind == "packet":
            if values.get("flags", "").startswith("K"):
                keys.append(len(times))
            times.append(_time(values))
            num_bytes += int(values.get("size", "0"))
        elif kind == "stream":
            words = (values.get("codec_name", ""), values.get("profile", ""))
            codec = " ".join(word for word in words if word not in ("", "unknown"))
    known = [time_s for time_s in times if time_s is not None]
    span_s = max(known) - min(known) if len(known) > 1 else 0.0
    if not span_s:
        return KeyFrames(codec=codec, why_unknown="ffprobe could not read the video")
    bits_per_s = 8 * num_bytes / span_s
    if len(keys) < 2:
        return KeyFrames(codec=codec, longer_than_s=span_s, bits_per_s=bits_per_s)
    interval_frames = max(after - before for before, after in pairwise(keys))
    # The first packets of a stream may have no time.
    period_s = span_s / (len(known) - 1)
    return KeyFrames(
        codec=codec, interval_s=interval_frames * period_s, interval_frames=interval_frames, bits_per_s=bits_per_s
    )


def _is_video(path: str) -> bool:
    return os.path.isfile(path) and not is_still(Path(path))


def _time(values: dict[str, str]) -> float | None:
    for name in ("dts_time", "pts_time"):
        try:
            return float(values[name])
        except (KeyError, ValueError):  # noqa: PERF203 - two names
            continue
    return None
