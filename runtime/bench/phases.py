"""The phases of a benchmark: warm-up, one frame after the other, and the runner with every slot busy."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgerpn.errors import InputError
from edgerpn.proposals import Proposals
from edgerpn.runtime.bench.frames import BenchFrame, FrameLoop, as_frame
from edgerpn.runtime.frame import Result
from edgerpn.runtime.model import Model
from edgerpn.runtime.run.logs import log_event
from edgerpn.runtime.run.runner import StreamRunner
from edgerpn.runtime.run.streams_config import SourceConfig, StreamsConfig

STAGES = ("preprocess", "inference", "postprocess")
"""Stages of a frame, in order; inference of an engine contains upload and download."""

PERCENTILES = (50, 90, 99)
_SOURCE = "frames-{}"
_SETTLED = 3
"""Parts of a phase; the first and the last are compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """Durations of one stage, milliseconds."""

    mean: float
    """Mean."""
    p50: float
    """Median."""
    p90: float
    """90th percentile."""
    p99: float
    """99th percentile."""
    max: float
    """The longest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One phase of a run."""

    start_s: float
    """`time.monotonic()` of its start."""
    end_s: float
    """`time.monotonic()` of its end."""
    num_frames: int
    """Frames in it."""
    frames_per_s: float
    """Frames per second."""
    stage_ms: dict[str, Distribution]
    """Time of a frame in each stage, and in all of them (total)."""
    drift_percent: float
    """Change of the rate from the first to the last third of the phase, percent; below zero: it became slower."""
    frames_per_s_by_part: tuple[float, ...]
    """Rate of each tenth of the phase."""


class PhaseLog:
    """Collects the frames of a phase."""

    def __init__(self) -> None:
        self._start_s = time.monotonic()
        self._ends_s: list[float] = []
        self._stage_ms: dict[str, list[float]] = defaultdict(list)

    def add(self, result: Result) -> None:
        """Counts a frame that is done at this moment."""
        self._ends_s.append(time.monotonic())
        for stage in STAGES:
            self._stage_ms[stage].append(result.stage_ms[stage])
        self._stage_ms["total"].append(sum(result.stage_ms[stage] for stage in STAGES))

    def finish(self) -> Phase:
        """Sums the phase up; it holds at least one frame."""
        end_s = self._ends_s[-1]
        rates = _rates(self._start_s, self._ends_s, 10)
        first, *_, last = _rates(self._start_s, self._ends_s, _SETTLED)
        return Phase(
            start_s=self._start_s,
            end_s=end_s,
            num_frames=len(self._ends_s),
            frames_per_s=len(self._ends_s) / max(end_s - self._start_s, 1e-9),
            stage_ms={stage: distribution(values) for stage, values in self._stage_ms.items()},
            drift_percent=100 * (last / first - 1) if first > 0 else 0.0,
            frames_per_s_by_part=rates,
        )


def distribution(values_ms: Sequence[float]) -> Distribution:
    """Returns mean, percentiles and maximum of at least one duration."""
    p50, p90, p99 = np.percentile(values_ms, PERCENTILES).tolist()
    return Distribution(mean=float(np.mean(values_ms)), p50=p50, p90=p90, p99=p99, max=float(max(values_ms)))


def _rates(start_s: float, ends_s: Sequence[float], num_parts: int) -> tuple[float, ...]:
    """Frames per second in parts of equal time."""
    edges = np.linspace(start_s, max(ends_s[-1], start_s + 1e-9), num_parts + 1)
    counts, _ = np.histogram(ends_s, edges)
    return tuple((counts / np.diff(edges)).tolist())


def warm_up(model: Model, frames: Sequence[BenchFrame], seconds: float) -> None:
    """Runs frames for some time, at least one, through the runner with every slot busy, and forgets them."""
    for _ in through_runner(model, frames[:1], seconds):
        pass


def run_serial(model: Model, frames: Sequence[BenchFrame], seconds: float) -> Phase:
    """Runs one frame after the other in this thread, as for one live camera, at least one round.

    Raises:
        InputError: A frame does not fit the model.
        InferenceError: The backend failed.
    """
    log = PhaseLog()
    deadline_s = time.monotonic() + seconds
    number = 0
    while number < len(frames) or time.monotonic() < deadline_s:
        (result,) = model.run_frames([as_frame(frames[number % len(frames)].image, number, "serial")])
        if isinstance(result, InputError):
            raise result
        log.add(result)
        number += 1
    return log.finish()


def run_throughput(
    model: Model,
    frames: Sequence[BenchFrame],
    seconds: float,
    *,
    num_sources: int,
    on_proposals: Callable[[BenchFrame, Proposals], None],
) -> Phase:
    """Runs the frames of several sources through the runner, as `edgerpn run` does with files.

    Args:
        model: Stays the caller's.
        frames: Frames of every source.
        seconds: Time after which the sources end; each frame is run once at least.
        num_sources: Sources at once, whose frames share batches.
        on_proposals: Called with each frame and its proposals at the first time.

    Raises:
        InputError: A frame does not fit the model.
        InferenceError: The backend failed.
    """
    log = PhaseLog()
    seen: set[int] = set()
    for frame, result in through_runner(model, frames, seconds, num_sources=num_sources):
        log.add(result)
        if frame.index not in seen:
            seen.add(frame.index)
            on_proposals(frame, result.proposals)
    return log.finish()


def through_runner(
    model: Model, frames: Sequence[BenchFrame], seconds: float, *, num_sources: int = 1
) -> Iterator[tuple[BenchFrame, Result]]:
    """Yields the results of the runner with the frames that they belong to."""
    deadline_s = time.monotonic() + seconds
    names = [_SOURCE.format(number) for number in range(num_sources)]
    opened = {name: FrameLoop(frames, name=name, is_over=lambda: time.monotonic() >= deadline_s) for name in names}
    # The text of a source is only shown.
    config = StreamsConfig(sources=tuple(SourceConfig(source=name, name=name) for name in names))
    with StreamRunner(model, config, opened=opened, is_strict=True) as runner:
        for item in runner:
            if isinstance(item, Result):
                yield frames[item.index % len(frames)], item
            else:
                log_event(item)
