"""The outputs of a run of streams: what the flags of `edgerpn run` and the tables `[[outputs]]` ask for."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgerpn.errors import ConfigError
from edgerpn.runtime.draw import Painter
from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.sinks import (
    JsonLinesConfig,
    Output,
    OutputConfig,
    QueuedSink,
    VideoConfig,
    close_sinks,
    open_sinks,
)
from edgerpn.runtime.sinks.picture_sinks import CODECS, ImageFolderSink, VideoSink, WindowSink
from edgerpn.runtime.sinks.sink import Sink


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFlags:
    """Outputs as they are asked for on the command line."""

    out: str | None = None
    """Folder for proposals.jsonl and annotated videos or images."""
    jsonl: str | None = None
    """File of JSON lines; - is the standard output."""
    video: str | None = None
    """Video file, of one source; or a folder for videos of all."""
    is_shown: bool = False
    """Whether to open a window for each source."""
    top: int = 20
    """Proposals drawn at most."""


def open_outputs(
    flags: OutputFlags, tables: Sequence[Output], *, num_sources: int, is_live: bool, has_images: bool
) -> list[Sink]:
    """Opens every output, each behind a queue of its own, but for windows, which belong to the main thread.

    Args:
        flags: From the command line.
        tables: From the settings.
        num_sources: Sources of the run.
        is_live: Whether any of them is live.
        has_images: Whether any of them may be pictures.

    Raises:
        ConfigError: What is asked for does not go together.
        SinkError: One cannot be opened; those opened before are closed.
    """
    # An output that is left out of one folder and file cannot be opened twice.
    outputs = [*tables, *_tables_of(flags)]
    sinks: list[Sink] = []
    painter = Painter(top=flags.top)
    try:
        # Those that can fail without leaving anything behind come first.
        if flags.is_shown:
            sinks.append(Windows(lambda name: WindowSink(painter, title=f"edgerpn: {name}")))
        if flags.video is not None and _is_file(flags.video):
            sinks.append(_video_file(flags.video, painter, num_sources=num_sources, is_live=is_live))
        if flags.out is not None and has_images:
            pictures = Pictures(ImageFolderSink(flags.out, painter))
            sinks.append(QueuedSink(pictures, OutputConfig(), kind="pictures", is_live=is_live))
        sinks.extend(open_sinks(outputs, is_live=is_live))
    except BaseException:
        close_sinks(sinks, timeout_s=1.0)
        raise
    return sinks


def _tables_of(flags: OutputFlags) -> list[Output]:
    files = [] if flags.jsonl is None else [flags.jsonl]
    folders = [] if flags.video is None or _is_file(flags.video) else [flags.video]
    if flags.out is not None:
        files.append(str(Path(flags.out) / "proposals.jsonl"))
        folders.append(flags.out)
    same = {os.path.realpath(file) for file in files if file != "-"}
    if len(same) < len([file for file in files if file != "-"]):
        raise ConfigError([f"{files[0]}: given for two outputs"])
    lines = [Output(kind="jsonl", config=JsonLinesConfig(path=file)) for file in files]
    return lines + [Output(kind="video", config=VideoConfig(folder=folder, top=flags.top)) for folder in folders]


def _is_file(video: str) -> bool:
    return Path(video).suffix.lower() in CODECS


def _video_file(path: str, painter: Painter, *, num_sources: int, is_live: bool) -> QueuedSink:
    if num_sources != 1:
        raise ConfigError([f"--video {path}: one file holds one source; name a folder for those of {num_sources}"])
    made = LateVideo(lambda fps: VideoSink(path, painter, fps=fps), target=path)
    return QueuedSink(made, OutputConfig(), kind="video", is_live=is_live)


class LateVideo:
    """A video file that begins when the source has told its rate."""

    def __init__(self, make: Callable[[float | None], Sink], *, target: str) -> None:
        """Makes the sink with the rate, or None where the source states none."""
        self.target = target
        self._make = make
        self._sink: Sink | None = None
        self._fps: float | None = None

    def write(self, result: Result) -> None:
        """Adds one frame."""
        if self._sink is None:
            self._sink = self._make(self._fps)
        self._sink.write(result)

    def event(self, event: Event) -> None:
        """Learns the rate."""
        if event.kind == "connected" and event.fps > 0:
            self._fps = event.fps

    def close(self) -> None:
        """Finishes the file."""
        if self._sink is not None:
            self._sink.close()


class Pictures:
    """Passes on what comes from picture files only."""

    def __init__(self, sink: Sink) -> None:
        """Takes over `sink`."""
        self.target = ""
        self._sink = sink

    def write(self, result: Result) -> None:
        """Passes a picture on."""
        if result.frame.path is not None:
            self._sink.write(result)

    def event(self, event: Event) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Closes the sink."""
        self._sink.close()


class Windows:
    """A window for each source; `is_closed_by_user` after Q or Escape in any."""

    target = ""

    def __init__(self, make: Callable[[str], WindowSink]) -> None:
        """Opens a window when its source gives a first result."""
        self._make = make
        self._windows: dict[str, WindowSink] = {}

    @property
    def is_closed_by_user(self) -> bool:
        """Whether somebody wants to end the run."""
        return any(window.is_closed_by_user for window in self._windows.values())

    def write(self, result: Result) -> None:
        """Shows one frame."""
        source = result.frame.source
        if source not in self._windows:
            self._windows[source] = self._make(source)
        self._windows[source].write(result)

    def event(self, event: Event) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Closes all windows."""
        for window in self._windows.values():
            window.close()
