"""Latencies of several ways to do the same, measured in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def in_turns(runs: Mapping[str, Callable[[], float]], seconds: float) -> dict[str, dict[str, float]]:
    """Runs all of them alternately, so that drift affects all; returns summaries of the milliseconds that they return.

    The first fifth of the time warms up; afterwards there are at least 20 rounds, whatever the time.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    while len(next(iter(times.values()))) < 20 or time.perf_counter() - start < 1.2 * seconds:
        is_warm = time.perf_counter() - start >= 0.2 * seconds
        for name, run in runs.items():
            elapsed = run()
            if is_warm:
                times[name].append(elapsed)
    return {name: summary(values) for name, values in times.items()}


def summary(values_ms: Sequence[float]) -> dict[str, float]:
    """Percentiles, mean and number."""
    quantiles = {f"p{q}": round(float(np.percentile(values_ms, q)), 4) for q in (50, 90, 99)}
    return {**quantiles, "mean": round(float(np.mean(values_ms)), 4), "rounds": len(values_ms)}


def wall_ms(run: Callable[[], object]) -> float:
    """Milliseconds of a call."""
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)
