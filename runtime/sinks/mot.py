"""Confirmed tracks in the CSV format of MOTChallenge, which tools for evaluation read.

    frame, id, left, top, width, height, score, -1, -1, -1

Its frames count from 1, and so do its pixels: a box that begins at the picture's left edge has left = 1, where ours
has x1 = 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.sinks.jsonl import LineFile
from edgerpn.runtime.sinks.picture_sinks import free_stem

SUFFIXES = (".txt", ".csv")
"""Suffixes of a file; another path is a folder."""


class MotSink:
    """Writes one file of one source, or NAME.txt of each source into a folder."""

    takes_pictures = False

    def __init__(self, path: str, names: Mapping[str, str] | None = None, *, is_live: bool = False) -> None:
        """Opens the file; those in a folder begin with the first result of their source.

        Args:
            path: File or folder to write; an existing file is replaced by the first result.
            names: NAME of sources for which it is not the name of the source.
            is_live: Whether files that the folder already has stay, and new ones are called NAME-2.txt and so on.

        Raises:
            SinkError: It cannot be opened.
        """
        self.target = path
        self._folder = Path(path)
        self._only = LineFile(path) if is_mot_file(path) else None
        self._names = names or {}
        self._is_live = is_live
        self._paths: dict[str, Path] = {}
        self._files: dict[str, LineFile] = {}

    def write(self, result: Result) -> None:
        file = self._only or self._file(result.frame.source)
        boxes, scores = result.proposals.boxes, result.proposals.scores
        lines = []
        for row, track in enumerate(result.tracks or ()):
            if track is not None and track.is_confirmed:
                x1, y1, x2, y2 = boxes[row].tolist()
                place = f"{x1 + 1:.2f},{y1 + 1:.2f},{x2 - x1:.2f},{y2 - y1:.2f}"
                lines.append(f"{result.index + 1},{track.track_id},{place},{scores[row]:.4f},-1,-1,-1\n")
        file.write("".join(lines).encode())

    def event(self, event: Event) -> None:
        """Closes the file of a source that has ended; the format has no events."""
        if event.kind != "ended":
            return
        if event.reason == "removed" and self._is_live:
            # Its file stays. If it is added again, its frames count from 1 again, in another file.
            self._paths.pop(event.source, None)
        file = self._files.pop(event.source, None)
        if file is not None:
            file.close()

    def close(self) -> None:
        for file in (self._only, *self._files.values()):
            if file is not None:
                file.close()

    def _file(self, source: str) -> LineFile:
        if source not in self._files:
            # A source that ended and comes back continues its file.
            path = self._paths.get(source)
            is_known = path is not None
            if path is None:
                taken = {other.stem for other in self._paths.values()}
                if self._is_live:
                    taken |= {other.stem for other in self._folder.glob("*.txt")}
                path = self._folder / f"{free_stem(self._names.get(source, source), taken)}.txt"
            self._files[source] = LineFile(path, append=is_known)
            self._paths[source] = path  # not before it is open, because one that fails must not be continued
        return self._files[source]


def is_mot_file(path: str) -> bool:
    """Returns whether a path names a file, and not a folder."""
    return Path(path).suffix.lower() in SUFFIXES
