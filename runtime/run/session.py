"""One run from start to end: sources through a model into sinks, until they end or a signal stops it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from edgerpn.errors import SinkError
from edgerpn.machine import StopOnSignal
from edgerpn.progress import Bar, progress
from edgerpn.runtime.frame import Event, Source
from edgerpn.runtime.run.loading import load_source
from edgerpn.runtime.run.logs import log_event
from edgerpn.runtime.run.runner import StreamRunner
from edgerpn.runtime.run.service import Notifier, Page, PageInfo, RemoteStreams, Service
from edgerpn.runtime.run.stats import RunCounts, RunSummary
from edgerpn.runtime.run.streams_config import MAX_SOURCES, SourceConfig, StreamsConfig
from edgerpn.runtime.run.workers import FrameModel
from edgerpn.runtime.sinks.contract import Sink
from edgerpn.runtime.sinks.sink_queue import QueuedSink, close_sinks
from edgerpn.runtime.threads import NoThreadError, start_thread

_STOP_LIVE_S = 1.5
_STOP_S = 10.0
_logger = logging.getLogger(__name__)


def run_streams(
    model: FrameModel,
    config: StreamsConfig,
    sinks: Sequence[Sink],
    *,
    opened: Mapping[str, Source] | None = None,
    load: Callable[[], StreamsConfig] | None = None,
    max_frames: int | None = None,
    page: Page | None = None,
    stays: bool = False,
    make_source: Callable[[Mapping[str, Any]], SourceConfig] | None = None,
) -> RunSummary:
    """Runs the sources of `config` through `model` and passes every result to every sink.

    SIGTERM and Ctrl-C end the run, a live one within two seconds; SIGHUP makes a live run read its settings again.
    The sinks are closed in any case, so that their files are whole.

    Args:
        model: Stays open.
        config: The sources, and the settings of the run.
        sinks: Closed at the end.
        opened: Files that are open already, by the names of their sources; closed at the end.
        load: Reads the settings again; None: SIGHUP takes over the same ones.
        max_frames: Results after which to stop; None: all.
        page: Shows the run; the caller closes it, though it begins to end with the run.
        stays: Whether to continue when all sources have ended.
        make_source: Settings of a source that comes by HTTP, from its table; None: no defaults.

    Raises:
        EdgeRpnError: The first error of model or sinks; a failed source does not end the run.
    """
    start_s = time.perf_counter()
    is_live = config.is_live or stays
    service = Service(
        load or (lambda: config),
        Notifier(),
        on_tick=page.hub.tick if page is not None else None,
        logs_status=is_live,
    )
    counts = RunCounts()
    queued = [sink for sink in sinks if isinstance(sink, QueuedSink)]
    if page is not None:
        # The first, because it never blocks, and others may.
        sinks = [page.hub, *sinks]
    try:
        runner = StreamRunner(
            model,
            config,
            opened=opened,
            stays=stays,
            shows_pictures=any(getattr(sink, "takes_pictures", True) for sink in sinks),
            max_results=max_frames,
            on_tick=service.tick,
        )
    except BaseException:
        _close_after_failure(sinks, timeout_s=None)
        raise
    with (
        runner,
        StopOnSignal(
            lambda: _stop(runner, queued if is_live else ()), on_hangup=service.want_reload if is_live else None
        ) as stopper,
    ):
        try:
            if page is not None:
                remote = RemoteStreams(runner, queued, make_source or _plain_source, max_sources=MAX_SOURCES)
                service.apply = remote.apply
                page.begin(remote, PageInfo(model=model.manifest.name, backend=model.backend.name))
            service.begin(runner)
            with _bar(opened or {}, max_frames, is_live=is_live) as bar:
                _consume(runner, sinks, counts, bar)
        except BaseException:
            _close_after_failure(sinks, timeout_s=_patience_s(stopper, is_live=is_live))
            raise
        finally:
            service.end()
        _close(runner, sinks, timeout_s=_patience_s(stopper, is_live=is_live))
    return counts.summary(
        num_drops=runner.num_dropped,
        num_stale=runner.num_stale,
        backend=model.backend.name,
        targets=tuple(sink.target for sink in sinks if sink.target),
        elapsed_s=time.perf_counter() - start_s,
        stop_signal=stopper.received,
    )


def _plain_source(table: Mapping[str, Any]) -> SourceConfig:
    return load_source(None, table)


def _stop(runner: StreamRunner, hurried: Sequence[QueuedSink]) -> None:
    runner.stop()
    for sink in hurried:
        sink.hurry()


def _patience_s(stopper: StopOnSignal, *, is_live: bool) -> float | None:
    """Seconds for closing the sinks: a live run must end soon after a signal, and a run of files keep its results."""
    if stopper.received is None:
        return None
    return _STOP_LIVE_S if is_live else _STOP_S


def _bar(opened: Mapping[str, Source], max_frames: int | None, *, is_live: bool) -> AbstractContextManager[Bar | None]:
    """Returns a progress bar for files; nothing for a live run, which has no end."""
    if is_live:
        return nullcontext()
    totals = [source.num_frames for source in opened.values()]
    total = None if None in totals else sum(count or 0 for count in totals)
    limits = [count for count in (total, max_frames) if count is not None]
    return progress(min(limits, default=None), "running", unit=" frames")


def _consume(runner: StreamRunner, sinks: Sequence[Sink], counts: RunCounts, bar: Bar | None) -> None:
    for item in runner:
        if isinstance(item, Event):
            log_event(item)
            counts.count_event(item)
            for sink in sinks:
                sink.event(item)
            continue
        counts.count_result(item)
        for sink in sinks:
            sink.write(item)
        if bar is not None:
            bar.update()
        if any(getattr(sink, "is_closed_by_user", False) for sink in sinks):
            # Not at once: the tracks of the run leave first.
            runner.stop()


def _close(runner: StreamRunner, sinks: Sequence[Sink], *, timeout_s: float | None) -> None:
    """Closes captures and sinks at the same time."""
    closing = threading.Thread(target=runner.close, name="edgerpn-close", daemon=True)
    # Without a thread the runner is closed after the sinks, by its `with` block.
    with suppress(NoThreadError):
        start_thread(closing)
    try:
        close_sinks(sinks, timeout_s=timeout_s)
    finally:
        if closing.ident is not None:
            closing.join()


def _close_after_failure(sinks: Sequence[Sink], *, timeout_s: float | None) -> None:
    """Closes the sinks while an error is on its way; their own errors are only logged."""
    try:
        close_sinks(sinks, timeout_s=timeout_s)
    except (SinkError, OSError) as error:
        _logger.warning("%s", error)
