"""One run of streams: sources through a model into sinks, until they end or somebody stops it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgerpn.machine import StopOnSignal
from edgerpn.runtime.event_log import log_event
from edgerpn.runtime.frame import Event
from edgerpn.runtime.model import Model
from edgerpn.runtime.run.loading import load_source
from edgerpn.runtime.run.notify import Notifier
from edgerpn.runtime.run.remote import RemoteStreams
from edgerpn.runtime.run.runner import StreamRunner
from edgerpn.runtime.run.service import Service
from edgerpn.runtime.run.streams_config import MAX_SOURCES, SourceConfig, StreamsConfig
from edgerpn.runtime.sinks import QueuedSink, close_sinks
from edgerpn.runtime.sinks.sink import Sink
from edgerpn.runtime.summary import RunSummary, Tally, close_all
from edgerpn.runtime.web.streams_protocol import PageInfo

if TYPE_CHECKING:
    from edgerpn.runtime.web.server import WebServer

_STOP_S = 1.5


def run_streams(
    model: Model,
    config: StreamsConfig,
    sinks: Sequence[Sink],
    *,
    load: Callable[[], StreamsConfig] | None = None,
    max_frames: int | None = None,
    stays: bool = False,
    page: WebServer | None = None,
    make_source: Callable[[Mapping[str, Any]], SourceConfig] | None = None,
) -> RunSummary:
    """Runs the sources of `config` through `model` and gives every result to every sink.

    SIGTERM and Ctrl-C end the run within two seconds, SIGHUP reads the settings again. Whatever happens, the sinks
    are closed, so that what they wrote is whole.

    Args:
        model: Stays open.
        config: The sources, and how they are run.
        sinks: Closed at the end.
        load: Reads the settings again; None: SIGHUP takes over the same ones.
        max_frames: Results after which to stop; None: all.
        stays: Whether to go on when all sources have ended.
        page: Shows the run; stays the caller's to close, though it begins to end with the run.
        make_source: Settings of a source that comes by HTTP, from its table; None: no defaults.

    Raises:
        EdgeRpnError: The first error of model or sinks; sources that fail end nothing.
    """
    start_s = time.perf_counter()
    service = Service(load or (lambda: config), Notifier(), on_tick=page.hub.tick if page is not None else None)
    tally = Tally()
    queued = [sink for sink in sinks if isinstance(sink, QueuedSink)]
    if page is not None:
        # The first, because it never blocks, and others may.
        sinks = [page.hub, *sinks]
    with (
        StreamRunner(model, config, stays=stays, max_results=max_frames, on_tick=service.tick) as runner,
        StopOnSignal(lambda: _stop(runner, queued), on_hangup=service.want_reload) as stopper,
    ):
        try:
            if page is not None:
                remote = RemoteStreams(runner, queued, make_source or _plain_source, max_sources=MAX_SOURCES)
                service.apply = remote.apply
                page.begin(remote, PageInfo(model=model.manifest.name, backend=model.backend.name))
            service.begin(runner)
            _consume(runner, sinks, tally)
        except BaseException:
            close_all(sinks, is_failing=True)
            raise
        finally:
            service.end()
        _close(runner, sinks, is_hasty=stopper.received is not None)
    return tally.summary(
        num_drops=runner.num_dropped,
        num_stale=runner.num_stale,
        backend=model.backend.name,
        sinks=sinks,
        elapsed_s=time.perf_counter() - start_s,
        stop_signal=stopper.received,
    )


def _plain_source(table: Mapping[str, Any]) -> SourceConfig:
    return load_source(None, table)


def _stop(runner: StreamRunner, queued: Sequence[QueuedSink]) -> None:
    runner.stop()
    for sink in queued:
        sink.hurry()


def _consume(runner: StreamRunner, sinks: Sequence[Sink], tally: Tally) -> None:
    for item in runner:
        if isinstance(item, Event):
            log_event(item)
            tally.count_event(item)
            for sink in sinks:
                sink.event(item)
            continue
        tally.count_result(item)
        for sink in sinks:
            sink.write(item)
        if any(getattr(sink, "is_closed_by_user", False) for sink in sinks):
            return


def _close(runner: StreamRunner, sinks: Sequence[Sink], *, is_hasty: bool) -> None:
    """Closes captures and sinks at the same time; after a signal, within two seconds."""
    closing = threading.Thread(target=runner.close, name="edgerpn-close", daemon=True)
    closing.start()
    try:
        close_sinks(sinks, timeout_s=_STOP_S if is_hasty else None)
    finally:
        closing.join()
