"""Metrics for Prometheus: two histograms, and figures that are read from the run at each request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from edgerpn import __version__
from edgerpn.runtime.frame import Result
from edgerpn.runtime.sinks import SinkStats

_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.033, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0)

_SOURCE_COUNTERS = (
    ("results", "num_results", "Frames whose proposals were emitted."),
    ("captured", "num_captured", "Frames read from the source."),
    ("dropped", "num_dropped", "Frames that the model did not take in time."),
    ("stale", "num_stale", "Frames that were too old for a result."),
    ("refused", "num_refused", "Frames that do not fit the model."),
    ("reconnects", "num_reconnects", "Reconnects."),
)
_SINK_COUNTERS = (
    ("written", "written", "Results and events delivered."),
    ("dropped", "dropped", "Results and events lost."),
    ("errors", "errors", "Failed calls of the output."),
)


class PageMetrics:
    """Histograms of emitted results, and the text of all metrics."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._age_s = Histogram(
            "edgerpn_age_seconds",
            "Age of frames when their proposals are emitted.",
            ["source"],
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._inference_s = Histogram(
            "edgerpn_inference_seconds",
            "Inference time of the batch that holds a frame.",
            ["source"],
            buckets=_BUCKETS_S,
            registry=self._registry,
        )

    def observe(self, result: Result) -> None:
        """Counts an emitted result."""
        source = result.frame.source
        self._age_s.labels(source).observe((result.age_ms or 0.0) / 1e3)
        self._inference_s.labels(source).observe(result.stage_ms["inference"] / 1e3)

    def forget(self, source: str) -> None:
        """Drops the histograms of a removed source."""
        for histogram in (self._age_s, self._inference_s):
            # It may have had no result.
            with suppress(KeyError):
                histogram.remove(source)

    def text(self, accept: str, families: Iterable[Metric]) -> tuple[bytes, str]:
        """Formats the metrics for Prometheus.

        Args:
            accept: The request's header, which chooses the format.
            families: Further metrics, from `families`.

        Returns:
            Body and content type.
        """
        encode, content_type = choose_encoder(accept)
        # A registry for this answer, so that the run's figures need no global state.
        registry = CollectorRegistry()
        registry.register(_FixedMetrics([*self._registry.collect(), *families]))
        return encode(registry), content_type


class _FixedMetrics(Collector):
    """A collector of given metrics."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def families(
    stats: Mapping[str, Mapping[str, Any]],
    sinks: Sequence[SinkStats],
    *,
    up_states: Sequence[str],
    gauges: Mapping[str, tuple[float, str]],
    counters: Mapping[str, tuple[float, str]],
    info: Mapping[str, str],
) -> Iterator[Metric]:
    """Makes metrics of the run's current state.

    Args:
        stats: A snapshot of each source.
        sinks: Snapshots of the outputs.
        up_states: States of sources that are up.
        gauges: Further single values: name, value, help.
        counters: Further single counters, likewise.
        info: Names and versions.
    """
    yield InfoMetricFamily("edgerpn", "Versions and model.", value={"version": __version__, **info})
    up = GaugeMetricFamily("edgerpn_source_up", "1: connected; 0: down.", labels=["source"])
    rate = GaugeMetricFamily(
        "edgerpn_source_results_per_second", "Results per second over the last five seconds.", labels=["source"]
    )
    since = GaugeMetricFamily("edgerpn_source_frame_age_seconds", "Seconds since the last frame.", labels=["source"])
    for name, view in stats.items():
        up.add_metric([name], float(view["state"] in up_states))
        rate.add_metric([name], view["fps"])
        if view["frame_age_s"] is not None:
            since.add_metric([name], view["frame_age_s"])
    yield from (up, rate, since)
    for name, key, text in _SOURCE_COUNTERS:
        counter = CounterMetricFamily(f"edgerpn_source_{name}", text, labels=["source"])
        for source, view in stats.items():
            counter.add_metric([source], view[key])
        yield counter
    # Two outputs may have the same name, but two samples may not.
    named = {
        f"{sink.name} #{index + 1}" if sink.name in {other.name for other in sinks[:index]} else sink.name: sink
        for index, sink in enumerate(sinks)
    }
    for name, key, text in _SINK_COUNTERS:
        counter = CounterMetricFamily(f"edgerpn_output_{name}", text, labels=["output"])
        for label, sink in named.items():
            counter.add_metric([label], getattr(sink, key))
        yield counter
    queued = GaugeMetricFamily("edgerpn_output_queued", "Results and events in the queue.", labels=["output"])
    failing = GaugeMetricFamily("edgerpn_output_failing", "1: the last call failed.", labels=["output"])
    for label, sink in named.items():
        queued.add_metric([label], sink.queued)
        failing.add_metric([label], float(sink.is_failing))
    yield from (queued, failing)
    for name, (value, text) in gauges.items():
        yield GaugeMetricFamily(name, text, value=value)
    for name, (value, text) in counters.items():
        yield CounterMetricFamily(name, text, value=value)
