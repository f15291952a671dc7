"""A capture process: reads one source and writes its frames into shared memory.

Its parent starts it with one argument, the number of an inherited socket, which carries everything else, so that the
list of processes shows no address and no password. It ends with its parent, however that ends.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from edgerpn.errors import MissingDependencyError
from edgerpn.files import printable
from edgerpn.machine import CHILD_MARK, die_with_parent
from edgerpn.runtime.frame import Reason
from edgerpn.runtime.opencv import load_cv2
from edgerpn.runtime.sources.capture_config import NETWORK_PROTOCOLS, CaptureConfig
from edgerpn.runtime.sources.decoders import choose, find_abilities
from edgerpn.runtime.sources.failures import CaptureFailedError
from edgerpn.runtime.sources.ffmpeg_reader import FfmpegReader
from edgerpn.runtime.sources.file_sources import is_damaged, is_still
from edgerpn.runtime.sources.http_pictures import PictureReader, explain
from edgerpn.runtime.sources.parent_link import ParentLink
from edgerpn.runtime.sources.plugins import PluginReader, load_plugin
from edgerpn.runtime.sources.pump import Pump
from edgerpn.runtime.sources.readers import OpenCvReader, Reader, is_late, probe_video, too_late
from edgerpn.runtime.sources.reconnect import ExitReport
from edgerpn.runtime.sources.wire import MAX_PACKET_BYTES, pack_alive

_FFMPEG_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


def main() -> None:
    """Captures until the source ends, or the parent stops it or dies; does not return."""
    # A source of another package may have captures of its own.
    os.environ.pop(CHILD_MARK, None)
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    die_with_parent()
    # A parent that died before this line has closed the socket.
    request = control.recv(MAX_PACKET_BYTES)
    if not request:
        return
    settings: dict[str, Any] = json.loads(request)
    for name in ("size_wh", "network_hw"):
        if settings[name] is not None:
            settings[name] = tuple(settings[name])
    config = CaptureConfig(**settings)
    end = capture(config, control)
    if end is not None:
        end[0].send_report(end[1])
    sys.stderr.flush()
    # Skips the teardown of decoder libraries, which takes time and may crash.
    os._exit(0)


def capture(config: CaptureConfig, control: socket.socket) -> tuple[ParentLink, ExitReport] | None:
    """Reads the whole source; returns the exit report for the parent, or None when the parent stopped it."""
    try:
        open_it = prepare(config)
        # The limit for opening starts here: importing OpenCV from a memory card may take longer.
        control.send(pack_alive(0))
        start_s = time.monotonic()
        # ffmpeg starts before the second thread.
        reader = open_it()
    except CaptureFailedError as error:
        return ParentLink(control, config.num_slots), _explained(config, _failure_report(error), 0)
    link = ParentLink(control, config.num_slots)
    pump = Pump(config, reader, link)
    try:
        pump.run()
        if link.is_stopping:
            return None
        if not pump.num_grabbed and is_late(config, time.monotonic() - start_s):
            return link, _failure_report(too_late(config))
        return link, _explained(config, _end_report(config, reader, pump), pump.num_grabbed)
    except CaptureFailedError as error:
        return link, _failure_report(error)
    finally:
        reader.close()


def prepare(config: CaptureConfig) -> Callable[[], Reader]:
    """Imports the reader of the source; returns a function that opens it.

    Raises:
        CaptureFailedError: The reader does not import. The returned function raises it for a source that does not open.
    """
    if config.spec.kind == "plugin":
        entry, factory = load_plugin(config)
        return lambda: PluginReader(config, entry, factory)
    cv2 = _load(config)
    return lambda: open_reader(config, cv2)


def open_reader(config: CaptureConfig, cv2: ModuleType | None) -> Reader:
    """Opens the source with the decoder chosen for it.

    Raises:
        CaptureFailedError: The source does not open, now or ever.
    """
    if cv2 is None:
        message = "OpenCV is not installed: pip install 'edgerpn[opencv-headless]' (on a Jetson: python3-opencv of apt)"
        raise CaptureFailedError(message, reason="dependency", is_final=True)
    if config.spec.kind == "path":
        _check_video(config.spec.path)
    choice = choose(config, find_abilities(cv2), lambda: probe_video(cv2, config))
    if choice.decoder == "picture":
        return PictureReader(cv2, config)
    if choice.decoder == "ffmpeg-process":
        return FfmpegReader(config, choice)
    return OpenCvReader(cv2, config, choice)


def _check_video(path: str) -> None:
    """Refuses everything but a video file: images need no capture process."""
    if not os.path.isfile(path):
        raise CaptureFailedError(f"{printable(path)}: no such video file", reason="not_found", is_final=True)
    if is_still(Path(path)):
        raise CaptureFailedError(f"{printable(path)}: an image, expected a video", reason="unsupported", is_final=True)


def _load(config: CaptureConfig) -> ModuleType | None:
    # Set before the import. The parent reads the messages of OpenCV and FFmpeg, and removes passwords.
    # Level 40, "verbose", reports changes of size.
    os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "40"
    os.environ["OPENCV_LOG_LEVEL"] = "WARNING"
    # Errors only, among them the names of missing elements.
    os.environ.setdefault("GST_DEBUG", "1")
    os.environ.setdefault("GST_DEBUG_NO_COLOR", "1")
    if _FFMPEG_OPTIONS not in os.environ:
        # By default FFmpeg reads a stream for over a second to guess its frame rate, before the first frame.
        options = ["fpsprobesize;0", f"protocol_whitelist;{NETWORK_PROTOCOLS}"]
        if config.spec.is_rtsp:
            options.append(f"rtsp_transport;{config.transport}")
        if config.ffmpeg_options:
            options.append(config.ffmpeg_options)
        if config.spec.kind == "url":
            os.environ[_FFMPEG_OPTIONS] = "|".join(options)
    try:
        cv2 = load_cv2()
    except MissingDependencyError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the parent reads it
        return None
    return cv2


def _failure_report(error: CaptureFailedError) -> ExitReport:
    return ExitReport(reason=error.reason, message=str(error), is_final=error.is_final, is_slow=error.is_slow)


def _explained(config: CaptureConfig, report: ExitReport, num_grabbed: int) -> ExitReport:
    """Returns a better report on an HTTP address that gave nothing, or one frame: the server's own answer."""
    is_mute = not num_grabbed and report.reason in ("unknown", "codec")
    if not config.spec.is_http or not (is_mute or num_grabbed == 1):
        return report
    answer = explain(config)
    if answer.reason == "picture" or (is_mute and answer.reason != "unknown"):
        return ExitReport(reason=answer.reason, message=answer.message, is_final=False)
    return report


def _end_report(config: CaptureConfig, reader: Reader, pump: Pump) -> ExitReport:
    """Returns the report of a source that delivered its last frame."""
    if reader.is_live:
        is_timeout = pump.last_wait_s >= 0.9 * config.longest_stall_s
        reason: Reason = "timeout" if is_timeout else "end_of_stream" if pump.num_grabbed else "unknown"
        return ExitReport(reason=reason, message="", is_final=False)
    if not pump.num_grabbed:
        return ExitReport(reason="codec", message="the source has no readable picture", is_final=True)
    if is_damaged(reader.num_frames, reader.fps or None, pump.times_s):
        message = f"ended after {pump.num_grabbed} of {reader.num_frames} frames; the file is damaged or cut short"
        return ExitReport(reason="codec", message=message, is_final=True)
    return ExitReport(reason="end_of_stream", message=f"{pump.num_grabbed} frames", is_final=True)


if __name__ == "__main__":
    main()
