"""Annotated video in files that are each whole, one row of files for each source."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from edgerpn.errors import SinkError
from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.opencv import load_cv2
from edgerpn.runtime.painter import Painter
from edgerpn.runtime.sinks.output_config import VideoConfig
from edgerpn.runtime.sinks.rotating import STAMP
from edgerpn.runtime.sinks.video_row import VideoRow

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class VideoSegmentsSink:
    """Writes the pictures with their boxes; a file appears under its name when it is finished.

    A new file begins when the one at hand is long or large enough, when the picture's size changes, after a gap of a
    live source, and after the disk was full. What a killed run leaves are hidden files, which the next run removes.
    """

    config_class = VideoConfig

    def __init__(self, config: VideoConfig, *, is_live: bool) -> None:
        """Makes the folder.

        Args:
            config: Where, and when a new file begins.
            is_live: Whether the pictures come by the clock rather than one after the other.

        Raises:
            SinkError: The folder cannot be made.
        """
        self.target = config.folder
        self._config = config
        self._is_live = is_live
        self._folder = Path(config.folder)
        self._painter = Painter(top=config.top)
        self._rows: dict[str, VideoRow] = {}
        load_cv2()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_remains()
        except OSError as error:
            raise SinkError(f"{config.folder}: cannot be made: {error.strerror or error}") from error

    def write(self, result: Result) -> None:
        """Adds one picture to the video of its source.

        Raises:
            NotDeliveredError: There is too little space left; the file at hand is finished.
            SinkError: A file could not be written.
        """
        source = result.frame.source
        row = self._rows.get(source)
        if row is None:
            path = self._folder / self._free_name(source)
            row = self._rows[source] = VideoRow(path, self._config, self._painter, is_live=self._is_live)
        row.add(result)

    def event(self, event: Event) -> None:
        """Finishes the file of a source that is gone, for now or for ever."""
        if event.kind in ("stalled", "reconnecting", "ended") and event.source in self._rows:
            self._rows[event.source].finish()

    def close(self) -> None:
        """Finishes all files.

        Raises:
            SinkError: One could not be; the others are finished all the same.
        """
        first: SinkError | None = None
        for row in self._rows.values():
            try:
                row.finish()
            except SinkError as error:  # noqa: PERF203 - one failing must not keep the others open
                first = first or error
        self._rows.clear()
        if first is not None:
            raise first

    def _free_name(self, source: str) -> str:
        """A part of a file's name that no other source of this run has."""
        name = plain = _UNSAFE.sub("_", source).strip("._") or "source"
        number = 1
        while name in {row.path.name for row in self._rows.values()}:
            number += 1
            name = f"{plain}-{number}"
        return name

    def _remove_remains(self) -> None:
        remains = re.compile(r"\..+-" + STAMP + r"\.[0-9a-f]{8}" + re.escape(self._config.suffix))
        for path in self._folder.iterdir():
            if remains.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()
