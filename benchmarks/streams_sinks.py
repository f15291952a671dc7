"""Part `sinks`: a dead consumer behind every kind of output, and whether results come as fast as without."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

from streams_dead import CONSUMERS, MissingConsumerError
from streams_plan import Part, Plan
from streams_statistics import Limit, ratio

from edgerpn.machine import available_cores
from edgerpn.runtime import load
from edgerpn.runtime.frame import Event, Result
from edgerpn.runtime.run import SourceConfig, StreamRunner, StreamsConfig
from edgerpn.runtime.sinks.sink import Sink

LIMIT = 0.95
"""The machine itself varies by some percent from one turn to the next; a stalled run gives no results at all."""

_SETTLE_S = 0.5
_DEAD_S = 20.0


class VideoTooShortError(Exception):
    """The video ended in the middle of a measurement."""


def sinks(plan: Plan) -> Part:
    """Turns without and with the dead consumer, in one run for each kind."""
    rows, limits, notes = [], [], []
    # That consumers are dead is no news here.
    logger = logging.getLogger("edgerpn")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        for kind in (name for name in CONSUMERS if plan.outputs.lower() in name.lower()):
            try:
                row = _measure(plan, kind)
            except (MissingConsumerError, VideoTooShortError) as error:
                notes.append(f"{kind}: left out, {error}")
                continue
            rows.append(row)
            limits += [
                Limit(what=f"{kind}: results/s over those without", value=row["median"], sign=">=", bound=LIMIT),
                Limit(what=f"{kind}: lost, so it was dead", value=row["lost"], sign=">=", bound=1),
            ]
    finally:
        logger.setLevel(level)
    notes.append(
        f"{plan.rounds} pairs of turns of {plan.seconds / 2:g} s in one run over a file, the first of a pair now the "
        "one, now the other; the outputs have the settings of a live run, short queues, and are opened for each turn. "
        "lost: records dropped, or bytes that a viewer has not read, in the turn with the fewest; a turn begins when "
        "there are some. longest_write_ms: the longest time for which an output has held the loop up."
    )
    notes.append("Not tried: a video file on a file system that hangs instead of being full.")
    return Part(name="sinks", rows=rows, limits=limits, notes=notes)


def _measure(plan: Plan, kind: str) -> dict[str, Any]:
    turns: list[dict[str, float]] = []
    totals: dict[str, Any] = {}
    config = StreamsConfig(sources=(SourceConfig(source=plan.video, name="file"),))
    with (
        load(plan.model, providers=["cpu"], threads=max(1, available_cores() - 1)) as model,
        StreamRunner(model, config) as runner,
    ):
        items = iter(runner)
        _turn(items, [], _SETTLE_S)
        for number in range(plan.rounds):
            pair: dict[str, float] = {}
            for name in ("without", "dead") if number % 2 else ("dead", "without"):
                is_dead = name == "dead"
                pair[name] = _dead_turn(plan, kind, runner, items, totals) if is_dead else _plain_turn(plan, items)
            turns.append(pair)
    return {"output": kind, **ratio(turns, "dead", "without"), **totals}


def _plain_turn(plan: Plan, items: Iterator[Result | Event]) -> float:
    _turn(items, [], _SETTLE_S)
    return _turn(items, [], plan.seconds / 2)[0]


def _dead_turn(
    plan: Plan, kind: str, runner: StreamRunner, items: Iterator[Result | Event], totals: dict[str, Any]
) -> float:
    """Results per second with the dead consumer; `totals` gets the worst of what was seen in any turn."""
    with CONSUMERS[kind](plan.folder, runner) as dead:
        end_s = time.monotonic() + _DEAD_S
        _turn(items, dead.sinks, _SETTLE_S)
        while not dead.lost() and time.monotonic() < end_s:
            _turn(items, dead.sinks, _SETTLE_S / 5)
        fps, longest_s = _turn(items, dead.sinks, plan.seconds / 2)
        lost = dead.lost()
    totals["lost"] = min(totals.get("lost", lost), lost)
    totals["longest_write_ms"] = max(totals.get("longest_write_ms", 0.0), longest_s * 1e3)
    return fps


def _turn(items: Iterator[Result | Event], opened: Sequence[Sink], seconds: float) -> tuple[float, float]:
    """Results per second, and the longest time in the outputs, seconds.

    Raises:
        VideoTooShortError: There are no more.
    """
    start_s, number, longest_s = time.perf_counter(), 0, 0.0
    for item in items:
        before_s = time.perf_counter()
        if isinstance(item, Result):
            number += 1
            for sink in opened:
                sink.write(item)
        else:
            for sink in opened:
                sink.event(item)
        now_s = time.perf_counter()
        longest_s = max(longest_s, now_s - before_s)
        if now_s - start_s >= seconds:
            return number / (now_s - start_s), longest_s
    raise VideoTooShortError("the video is too short, and there is no ffmpeg to repeat it")
