"""One run: a source through a model into sinks, until it ends or somebody stops it."""

from __future__ import annotations

import dataclasses
import logging
import signal
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from edgerpn.errors import SinkError
from edgerpn.machine import StopOnSignal
from edgerpn.progress import Bar, progress
from edgerpn.runtime.event_log import log_event
from edgerpn.runtime.frame import Event, Result, Source
from edgerpn.runtime.model import Model
from edgerpn.runtime.pipeline import Pipeline
from edgerpn.runtime.sinks.picture_sinks import WindowSink
from edgerpn.runtime.sinks.sink import Sink
from edgerpn.runtime.timing import LatencyHistogram

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """What a run did."""

    num_frames: int
    """Frames that went through the model and into every sink."""
    num_errors: int
    """Items of the source that could not be read."""
    num_drops: int
    """Frames that a live source dropped for newer ones."""
    num_stale: int = 0
    """Frames that were too old to be a result."""
    elapsed_s: float
    """From the first read to the last closed file, seconds."""
    inference_median_ms: float | None
    """Median time of one inference; nothing without frames."""
    inference_p95_ms: float | None
    """95th percentile of the same."""
    backend: str
    """What ran the model."""
    targets: tuple[str, ...]
    """Files and folders written."""
    stop_signal: int | None
    """Number of the signal that ended the run early, if one did."""

    @property
    def fps(self) -> float:
        """Frames per second over the whole run."""
        return self.num_frames / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def text(self) -> str:
        """The summary as one line for people."""
        parts = [f"{self.num_frames} frames in {self.elapsed_s:.2f} s ({self.fps:.1f} frames/s)"]
        if self.inference_median_ms is not None and self.inference_p95_ms is not None:
            parts.append(
                f"inference median {self.inference_median_ms:.1f} ms, 95th percentile {self.inference_p95_ms:.1f} ms"
            )
        parts.append(f"{self.num_drops} dropped")
        if self.num_stale:
            parts.append(f"{self.num_stale} stale")
        if self.num_errors:
            parts.append(f"{self.num_errors} unreadable")
        parts.append(self.backend)
        if self.stop_signal is not None:
            parts.append(f"stopped by {signal.Signals(self.stop_signal).name}")
        parts.append(f"written: {', '.join(self.targets)}" if self.targets else "nothing written")
        return "; ".join(parts)


def run_source(
    model: Model,
    source: Source,
    sinks: Sequence[Sink],
    *,
    workers: int | None = None,
    max_frames: int | None = None,
    min_score: float = 0.0,
) -> RunSummary:
    """Runs `source` through `model` and gives every result to every sink.

    Ctrl-C and SIGTERM end the run after the frame at hand. Whatever happens, the sinks are closed, so that what they
    wrote is whole, and the source too.

    Args:
        model: Stays open.
        source: Closed at the end.
        sinks: Closed at the end.
        workers: Frames in the model at the same time; None: the model's default.
        max_frames: Frames after which to stop; None: all.
        min_score: Proposals scored below this reach no sink.

    Raises:
        EdgeRpnError: The first error of source, model or sinks.
    """
    start = time.perf_counter()
    pipeline = model.pipeline(source, workers=workers, max_frames=max_frames)
    tally = Tally()
    with StopOnSignal(pipeline.stop) as stopper:
        try:
            with progress(_total(source, max_frames), "running", unit=" frames") as bar:
                _consume(pipeline, sinks, tally, bar, min_score)
        except BaseException:
            close_all(sinks, is_failing=True)
            raise
        close_all(sinks, is_failing=False)
    return tally.summary(
        num_drops=source.drops,
        backend=model.backend.name,
        sinks=sinks,
        elapsed_s=time.perf_counter() - start,
        stop_signal=stopper.received,
    )


class Tally:
    """Counts of a run so far."""

    def __init__(self) -> None:
        """Starts at zero."""
        self.num_frames = 0
        self.num_errors = 0
        self._inference = LatencyHistogram()

    def count_result(self, result: Result) -> None:
        """Counts an emitted result."""
        self.num_frames += 1
        self._inference.add(result.stage_ms["inference"])

    def count_event(self, event: Event) -> None:
        """Counts an emitted event."""
        self.num_errors += event.kind == "error"

    def summary(
        self,
        *,
        num_drops: int,
        num_stale: int = 0,
        backend: str,
        sinks: Sequence[Sink],
        elapsed_s: float,
        stop_signal: int | None,
    ) -> RunSummary:
        """The counts together with what else there is to say."""
        return RunSummary(
            num_frames=self.num_frames,
            num_errors=self.num_errors,
            num_drops=num_drops,
            num_stale=num_stale,
            elapsed_s=elapsed_s,
            inference_median_ms=self._inference.percentile_ms(50),
            inference_p95_ms=self._inference.percentile_ms(95),
            backend=backend,
            targets=tuple(sink.target for sink in sinks if sink.target),
            stop_signal=stop_signal,
        )


def _consume(pipeline: Pipeline, sinks: Sequence[Sink], tally: Tally, bar: Bar, min_score: float) -> None:
    with closing(iter(pipeline)) as items:
        for item in items:
            if isinstance(item, Event):
                log_event(item)
                tally.count_event(item)
                for sink in sinks:
                    sink.event(item)
                continue
            result = _emitted(item, min_score)
            for sink in sinks:
                sink.write(result)
            tally.count_result(item)
            bar.update()
            if any(isinstance(sink, WindowSink) and sink.is_closed_by_user for sink in sinks):
                return


def _emitted(result: Result, min_score: float) -> Result:
    """The result as sinks get it: with its age, and without weak proposals."""
    proposals = result.proposals if min_score <= 0 else result.proposals.above(min_score)
    return dataclasses.replace(result, proposals=proposals, age_ms=result.frame.age_ms(time.monotonic()))


def _total(source: Source, max_frames: int | None) -> int | None:
    counts = [count for count in (source.num_frames, max_frames) if count is not None]
    return min(counts) if counts else None


def close_all(sinks: Sequence[Sink], *, is_failing: bool) -> None:
    """Closes every sink; the first failure is raised, unless an earlier error is already on its way."""
    first: SinkError | OSError | None = None
    for sink in sinks:
        try:
            sink.close()
        except (SinkError, OSError) as error:  # noqa: PERF203 - one failing must not keep the others open
            if is_failing or first is not None:
                _logger.warning("%s", error)
            first = first or error
    if first is not None and not is_failing:
        raise first
