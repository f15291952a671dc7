"""The sources of a run by name: their settings, captures and counts, while they come and go."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.run.stats import SourceStats, SourceTally
from edgerpn.runtime.run.streams_config import SourceConfig, StreamsConfig
from edgerpn.runtime.sources import Capture, CaptureGroup


class _Entry:
    """One source."""

    def __init__(self, settings: SourceConfig, capture: Capture, tally: SourceTally) -> None:
        self.settings = settings
        self.capture = capture
        self.tally = tally


class Roster:
    """All sources of a run; any thread may use it."""

    def __init__(self, group: CaptureGroup) -> None:
        """Adds to and removes from `group`."""
        self.min_score = 0.0
        self.has_live = False
        self.is_changing = False
        """Whether sources are being exchanged: there may be none for a moment."""
        self._group = group
        self._entries: dict[str, _Entry] = {}
        # Held while a source ends, which may take two seconds; readers therefore do without it.
        self._changing = threading.RLock()
        self._stale_of_removed = 0
        self._dropped_of_removed = 0

    @property
    def num_stale(self) -> int:
        """Stale frames of all sources, past ones too."""
        return self._stale_of_removed + sum(entry.tally.num_stale for entry in self._now())

    @property
    def num_dropped(self) -> int:
        """Dropped frames of all sources, past ones too."""
        return self._dropped_of_removed + sum(entry.capture.stats.num_dropped for entry in self._now())

    def add(self, settings: SourceConfig) -> None:
        """Adds a source; errors as those of `CaptureGroup.add`."""
        with self._changing:
            capture = self._group.add(settings.capture)
            entry = _Entry(settings, capture, SourceTally())
            # A new dictionary each time, so that whoever reads the old one is not disturbed.
            self._set({**self._entries, settings.label: entry})

    def remove(self, name: str) -> bool:
        """Ends a source; False when there is none of this name."""
        with self._changing:
            entry = self._entries.get(name)
            if entry is None:
                return False
            self._set({other: kept for other, kept in self._entries.items() if other != name})
            entry.capture.close()
            self._stale_of_removed += entry.tally.num_stale
            self._dropped_of_removed += entry.capture.stats.num_dropped
            return True

    def apply(self, config: StreamsConfig) -> list[str]:
        """Makes the sources those of `config`; the names of those that were ended, even if they were added anew."""
        with self._changing:
            self.min_score = config.min_score
            self.is_changing = True
            try:
                return self._exchange({settings.label: settings for settings in config.sources})
            finally:
                self.is_changing = False

    def _exchange(self, wanted: Mapping[str, SourceConfig]) -> list[str]:
        ended = []
        for name, entry in list(self._entries.items()):
            if name not in wanted or entry.settings.capture != wanted[name].capture:
                self.remove(name)
                ended.append(name)
            else:
                entry.settings = wanted[name]
        for name, settings in wanted.items():
            if name not in self._entries:
                self.add(settings)
        return ended

    def settings_of(self, name: str) -> SourceConfig | None:
        """The present settings of a source; None: it is not there any more."""
        entry = self._entries.get(name)
        return entry.settings if entry is not None else None

    def count(self, item: Result | Event) -> None:
        """Counts what is emitted."""
        entry = self._entries.get(item.frame.source if isinstance(item, Result) else item.source)
        if entry is None:
            return
        if isinstance(item, Result):
            entry.tally.count_result(item)
        else:
            entry.tally.count_event(item)

    def count_refused(self, name: str) -> None:
        """Counts a frame that does not fit the model."""
        entry = self._entries.get(name)
        if entry is not None:
            entry.tally.num_refused += 1

    def stats(self) -> dict[str, SourceStats]:
        """A snapshot of each source."""
        return {name: entry.tally.snapshot(name, entry.capture.stats) for name, entry in self._entries.items()}

    def _now(self) -> list[_Entry]:
        return list(self._entries.values())

    def _set(self, entries: dict[str, _Entry]) -> None:
        self._entries = entries
        self.has_live = any(entry.settings.is_live for entry in entries.values())
