"""Decoding by the program ffmpeg through a pipe, for machines whose OpenCV cannot decode.

ffmpeg reads the address from its standard input, as a list for its `concat` reader, so that the list of processes shows
no password. The pictures are BMP, whose header has the size, which saves a second connection. When the source changes
its size, ffmpeg scales to the first one.
"""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import numpy as np

from edgerpn.machine import die_with_parent_hook, end_child, run_tool
from edgerpn.runtime.sources.capture_config import FILE_PROTOCOLS, NETWORK_PROTOCOLS, CaptureConfig
from edgerpn.runtime.sources.decoders import Choice
from edgerpn.runtime.sources.failures import CaptureFailedError
from edgerpn.runtime.sources.readers import Image

_BMP_HEADER = struct.Struct("<2sIxxxxIIii")
_VERSION_S = 5.0


class FfmpegReader:
    """Frames of a file or URL by the program ffmpeg, without time stamps; see `Reader`."""

    camera_hw: tuple[int, int] | None = None

    fps = 0.0
    num_frames = 0

    def __init__(self, config: CaptureConfig, choice: Choice) -> None:
        """Starts ffmpeg; the first `grab` shows whether it can read the source.

        Raises:
            CaptureFailedError: ffmpeg does not start.
        """
        self.is_live = config.spec.is_live
        version = _version()
        self.decoder = f"ffmpeg {version or 'of unknown version'} in a separate process: {choice.why}"
        every_frame = ["-fps_mode", "passthrough"] if version is None or version >= (5, 1) else ["-vsync", "0"]
        command = [
            *("ffmpeg", "-nostats", "-hide_banner", "-loglevel", "warning"),
            *("-protocol_whitelist", list_protocols(config), "-f", "concat", "-safe", "0", "-i", "pipe:0"),
            *("-map", "0:v:0", *every_frame, "-f", "image2pipe", "-c:v", "bmp", "-pix_fmt", "bgr24", "pipe:1"),
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Without this, a killed capture process would leave ffmpeg behind.
            preexec_fn=die_with_parent_hook(),
        )
        self._header: tuple[int, int, int] = (0, 0, 0)
        self._pending = False
        self._write(playlist(config))

    def grab(self) -> bool:
        if self._pending:
            self._body()
        head = self._read(_BMP_HEADER.size)
        if len(head) < _BMP_HEADER.size:
            return False
        magic, file_bytes, data_offset, _, width, height = _BMP_HEADER.unpack(head)
        if magic != b"BM":
            raise CaptureFailedError("ffmpeg's output is not BMP pictures", reason="codec")
        self._read(data_offset - _BMP_HEADER.size)
        self._header = (width, height, file_bytes - data_offset)
        self._pending = True
        return True

    def retrieve(self, into: Image | None) -> Image | None:
        width, height, _ = self._header
        body = self._body()
        row_bytes = -(-width * 3 // 4) * 4
        if len(body) < row_bytes * abs(height):
            return None
        rows = np.frombuffer(body, np.uint8)[: row_bytes * abs(height)].reshape(abs(height), row_bytes)
        image = rows[:, : width * 3].reshape(abs(height), width, 3)
        # BMP rows run from bottom to top, unless the height is negative.
        image = image[::-1] if height > 0 else image
        if into is None or into.shape != image.shape:
            return image
        into[...] = image
        return into

    def media_time_s(self) -> float | None:
        return None

    def close(self) -> None:
        end_child(self._process)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _write(self, text: str) -> None:
        pipe = self._process.stdin
        if pipe is None:
            return
        try:
            pipe.write(text.encode("utf-8", "surrogateescape"))
            pipe.close()
        except BrokenPipeError:
            # ffmpeg has ended already; its messages say why.
            return

    def _body(self) -> bytes:
        self._pending = False
        return self._read(self._header[2])

    def _read(self, num_bytes: int) -> bytes:
        pipe = self._process.stdout
        return pipe.read(num_bytes) if pipe is not None and num_bytes > 0 else b""


def list_protocols(config: CaptureConfig) -> str:
    """Returns the protocols that ffmpeg and ffprobe may open for a source, as their option expects it.

    The pipe is for our own list. A playlist that names a pipe gets nothing: our list has been read, and the process
    inherits no other file.
    """
    return f"pipe,{NETWORK_PROTOCOLS if config.spec.is_live else FILE_PROTOCOLS}"


def playlist(config: CaptureConfig) -> str:
    """Returns the source as a list of one entry for ffmpeg's concat reader."""
    spec = config.spec
    target = spec.text if spec.is_live else f"file:{Path(spec.path).resolve()}"
    if "\n" in target or "\r" in target:
        raise CaptureFailedError("the address has a line end", reason="not_found", is_final=True)
    lines = ["ffconcat version 1.0", "file '{}'".format(target.replace("'", "'\\''"))]
    if spec.is_rtsp:
        lines.append(f"option rtsp_transport {config.transport}")
    return "\n".join(lines) + "\n"


def _version() -> tuple[int, int] | None:
    """Returns major and minor version of ffmpeg; None for builds without one."""
    try:
        status, output = run_tool(["ffmpeg", "-version"], timeout_s=_VERSION_S)
    except OSError as error:
        # Memory, processes and open files may be short for a while.
        is_missing = isinstance(error, FileNotFoundError | PermissionError)
        message = f"ffmpeg does not start: {error}"
        raise CaptureFailedError(message, reason="dependency", is_final=is_missing) from error
    if status is None:
        message = f"ffmpeg does not start: `ffmpeg -version` gave no answer within {_VERSION_S:g} s"
        raise CaptureFailedError(message, reason="dependency")
    found = re.search(rb"version n?(\d+)\.(\d+)", output)
    return (int(found[1]), int(found[2])) if found else None
