"""The registry of a run's sources by name: their settings, captures and counts, while they come and go."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Mapping
from functools import partial

from edgerpn.images.header import Exif
from edgerpn.runtime.frame import Event, Frame, Result, Source
from edgerpn.runtime.run.stats import SourceCounts, SourceStats
from edgerpn.runtime.run.streams_config import SourceConfig, StreamsConfig
from edgerpn.runtime.sources.capture import Capture
from edgerpn.runtime.sources.capture_config import CaptureConfig
from edgerpn.runtime.sources.file_sources import ImageSource, open_source
from edgerpn.runtime.sources.group import CaptureGroup
from edgerpn.runtime.zones import ZoneMap


class _Entry:
    """One source."""

    def __init__(self, settings: SourceConfig, capture: Capture) -> None:
        self.change(settings)
        self.capture = capture
        self.counts = SourceCounts()
        self.refused_shape: tuple[int, ...] = ()
        """Shape of the last frame that did not fit the model."""
        self.is_live = settings.is_live
        """Whether the present connection is live: that of a URL may give a file."""

    def change(self, settings: SourceConfig) -> None:
        """Takes over settings with the same capture."""
        self.settings = settings
        self.zone_map = settings.zone_map


class SourceRegistry:
    """All sources of a run; any thread may use it."""

    def __init__(
        self,
        group: CaptureGroup,
        *,
        depth: int,
        exif: Exif,
        takes_bgrx: bool,
        network_hw: tuple[int, int] | None = None,
        opened: Mapping[str, Source] | None = None,
        tells_ends: bool = False,
    ) -> None:
        """Starts empty.

        Args:
            group: Captures the sources.
            depth: Frames that are read ahead of each file.
            exif: Whether images are turned by their EXIF orientation, unless their source was opened with a rule.
            takes_bgrx: Whether the model takes pictures of four channels.
            network_hw: Size to which hardware may scale pictures, see `CaptureConfig`; None: pictures keep their size.
            opened: Files that are open already, by the names of their sources; the registry closes them.
            tells_ends: Whether files and images have an event `ended` too.
        """
        self.min_score = 0.0
        self.has_live = False
        self.is_changing = False
        """Whether sources are being exchanged: there may be none for a moment."""
        self._group = group
        self._depth = depth
        self._exif = exif
        self._takes_bgrx = takes_bgrx
        self._network_hw = network_hw
        self._opened = dict(opened or {})
        self._tells_ends = tells_ends
        self._entries: dict[str, _Entry] = {}
        # Held while a source ends, up to two seconds, so readers do not take it.
        self._changing = threading.RLock()
        self._stale_of_removed = 0
        self._dropped_of_removed = 0

    @property
    def num_stale(self) -> int:
        """Stale frames of all sources, those of removed ones included."""
        return self._stale_of_removed + sum(entry.counts.num_stale for entry in self._now())

    @property
    def num_dropped(self) -> int:
        """Dropped frames of all sources, those of removed ones included."""
        return self._dropped_of_removed + sum(entry.capture.stats.num_dropped for entry in self._now())

    def add(self, settings: SourceConfig) -> None:
        """Adds a source; errors as those of `CaptureGroup.add`."""
        with self._changing:
            # A new dictionary each time, so that readers of the old one are not disturbed.
            self._set({**self._entries, settings.label: _Entry(settings, self._capture(settings))})

    def remove(self, name: str) -> bool:
        """Ends a source; False when no source has this name."""
        with self._changing:
            entry = self._entries.get(name)
            if entry is None:
                return False
            self._set({other: kept for other, kept in self._entries.items() if other != name})
            entry.capture.close()
            self._stale_of_removed += entry.counts.num_stale
            self._dropped_of_removed += entry.capture.stats.num_dropped
            return True

    def apply(self, config: StreamsConfig, on_end: Callable[[str], None]) -> None:
        """Makes the sources those of `config`; passes the names of ended ones to `on_end` before others begin."""
        with self._changing:
            self.min_score = config.min_score
            self.is_changing = True
            try:
                self._exchange({settings.label: settings for settings in config.sources}, on_end)
            finally:
                self.is_changing = False

    def settings_of(self, name: str) -> SourceConfig | None:
        """Returns the present settings of a source; None: it was removed."""
        entry = self._entries.get(name)
        return entry.settings if entry is not None else None

    def age_limit_ms_of(self, name: str) -> float | None:
        """Returns the age above which a frame is stale, milliseconds; None: the source was removed."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        return entry.settings.age_limit_ms if entry.is_live else math.inf

    def zone_map_of(self, name: str) -> ZoneMap | None:
        """Returns the present zones and masks of a source; None: there are none."""
        entry = self._entries.get(name)
        return entry.zone_map if entry is not None else None

    def is_live(self, name: str) -> bool:
        """Whether a source continues when the run does not read it; False for a removed one."""
        settings = self.settings_of(name)
        return settings is not None and settings.is_live

    def count(self, item: Result | Event) -> None:
        """Counts an item before it is emitted; an event `connected` says whether the frames after it are live."""
        entry = self._entries.get(item.frame.source if isinstance(item, Result) else item.source)
        if entry is None:
            return
        if isinstance(item, Result):
            entry.counts.count_result(item)
            return
        entry.counts.count_event(item)
        if item.kind == "connected":
            entry.is_live = item.is_live

    def count_refused(self, frame: Frame) -> bool:
        """Counts a frame that does not fit the model; True unless the last such frame of its source had its shape."""
        entry = self._entries.get(frame.source)
        if entry is None:
            # The source has just come or gone.
            return True
        entry.counts.num_refused += 1
        before, entry.refused_shape = entry.refused_shape, frame.image.shape
        return before != frame.image.shape

    def stats(self) -> dict[str, SourceStats]:
        """Returns a snapshot of each source."""
        return {name: entry.counts.snapshot(name, entry.capture.stats) for name, entry in self._entries.items()}

    def _capture(self, settings: SourceConfig) -> Capture:
        if not settings.is_read_here:
            return self._group.add(self._for_model(settings.capture))
        name = settings.label
        opened = self._opened.pop(name, None)
        if isinstance(opened, ImageSource) and opened.exif is None:
            opened.exif = self._exif
        open_it = (
            (lambda: opened)
            if opened is not None
            else partial(
                open_source,
                settings.source,
                name=name,
                decoder_threads=settings.decoder_threads,
                exif=self._exif,
            )
        )
        return self._group.add_file(
            name, open_it, depth=self._depth, max_fps=settings.max_fps, tells_end=self._tells_ends
        )

    def _for_model(self, config: CaptureConfig) -> CaptureConfig:
        """Returns the settings of a capture process with the channels and the size that suit the model."""
        channels = "bgrx" if config.channels == "auto" and self._takes_bgrx else config.channels
        return dataclasses.replace(config, channels=channels, network_hw=self._network_hw)

    def _exchange(self, wanted: Mapping[str, SourceConfig], on_end: Callable[[str], None]) -> None:
        for name, entry in list(self._entries.items()):
            if name not in wanted or entry.settings.capture != wanted[name].capture:
                self.remove(name)
                on_end(name)
            else:
                entry.change(wanted[name])
        for name, settings in wanted.items():
            if name not in self._entries:
                self.add(settings)

    def _now(self) -> list[_Entry]:
        return list(self._entries.values())

    def _set(self, entries: dict[str, _Entry]) -> None:
        self._entries = entries
        self.has_live = any(entry.settings.is_live for entry in entries.values())
