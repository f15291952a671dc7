"""Part `files`: 1, 4 and 8 files or RTSP cameras at once, their results over the bare model's, and fairness."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks.inference import bare_calls
from benchmarks.machine import cpu_s, tree
from benchmarks.streams.camera import Camera
from benchmarks.streams.plan import Limit, Part, Plan
from edgerpn.machine import available_cores
from edgerpn.runtime import Model, load
from edgerpn.runtime.frame import Result
from edgerpn.runtime.run import SourceConfig, StreamRunner, StreamsConfig

LIMIT = 0.9
_WARM_UP_RUNS = 5
_CONNECT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """Results of some sources in the time in which all delivered frames."""

    results: Counter[str]
    """By source."""
    seconds: float
    """Length of that time."""
    cores: dict[str, float]
    """Cores that were busy meanwhile: inference (our process), capture, camera."""


def files(plan: Plan) -> Part:
    """Measures the bare model, files and cameras alternately, round by round."""
    rounds: list[dict[str, Any]] = []
    for number in plan.numbers:
        for _ in range(plan.rounds):
            bare = bare_fps(plan)
            rounds.append({"kind": "files", "sources": number, "offered_fps": None, **_files(plan, number, bare)})
            if not plan.no_camera:
                offered = number * plan.source_fps
                found = _cameras(plan, number, min(bare, offered))
                rounds.append({"kind": "RTSP", "sources": number, "offered_fps": offered, "bare_fps": bare, **found})
    kinds = ("files",) if plan.no_camera else ("files", "RTSP")
    rows = [_median(rounds, kind, number) for kind in kinds for number in plan.numbers]
    limits = [
        Limit(what=f"{row['sources']} {row['kind']}, {figure}", value=row[figure], sign=">=", bound=LIMIT)
        for row in rows
        for figure in ("ratio", "fairness")
        if row["kind"] == "files" or figure == "fairness"
    ]
    return Part(name="files", rows=rows, limits=limits, notes=_notes(plan), figures={"rounds": rounds})


def _notes(plan: Plan) -> list[str]:
    notes = [
        "ratio: results of all sources over those of the bare model in a loop (`InferenceSession.run` on one ready "
        "frame, the faster of ONNX Runtime's options and ours). fairness: the slowest source over the fastest. "
        f"Medians of {plan.rounds} rounds."
    ]
    if plan.no_camera:
        return [*notes, f"RTSP was left out: {plan.no_camera}"]
    return [
        *notes,
        f"RTSP: connections to one camera of {plan.source_fps:g} pictures/s. ratio is over the lesser of what they "
        "offer and the bare model, and no limit: encoding the video and decoding each connection take cores that the "
        "bare model has to itself, which the columns of busy cores show. What the model cannot take is dropped, newest "
        "frame first.",
    ]


def _median(rounds: list[dict[str, Any]], kind: str, number: int) -> dict[str, Any]:
    chosen = [row for row in rounds if row["kind"] == kind and row["sources"] == number]
    return {
        key: statistics.median(row[key] for row in chosen) if isinstance(value, float) else value
        for key, value in chosen[0].items()
    }


def _files(plan: Plan, number: int, bare: float) -> dict[str, float]:
    sources = tuple(SourceConfig(source=plan.video, name=f"source{i}") for i in range(number))
    with load(plan.model, providers=["cpu"], threads=max(1, available_cores() - 1)) as model:
        return {"bare_fps": bare, **_figures(count(model, sources, plan.seconds), number, bare)}


def _cameras(plan: Plan, number: int, most_fps: float) -> dict[str, float]:
    with ExitStack() as stack:
        camera = stack.enter_context(Camera(plan.pictures, plan.camera_wh, plan.source_fps))
        model = stack.enter_context(load(plan.model, providers=["cpu"]))
        sources = tuple(SourceConfig(source=camera.url, name=f"source{i}") for i in range(number))
        return _figures(count(model, sources, plan.seconds, camera=camera), number, most_fps)


def _figures(counted: Counted, number: int, most_fps: float) -> dict[str, float]:
    results = counted.results
    fps = sum(results.values()) / counted.seconds
    fairness = min(results.values()) / max(results.values()) if len(results) == number else 0.0
    cores = {f"{name}_cores": value for name, value in counted.cores.items()}
    return {"fps": fps, "ratio": fps / most_fps, "fairness": fairness, **cores}


def count(model: Model, sources: tuple[SourceConfig, ...], seconds: float, *, camera: Camera | None = None) -> Counted:
    """Counts results from the first result of the last source on, until one ends or the time is over.

    Raises:
        RuntimeError: A source has no result within a minute.
    """
    counts: Counter[str] = Counter()
    seen: set[str] = set()
    with StreamRunner(model, StreamsConfig(sources=sources)) as runner:
        begun_s, start_s, before = time.perf_counter(), 0.0, {}
        for item in runner:
            now_s = time.perf_counter()
            if isinstance(item, Result):
                seen.add(item.frame.source)
                counts[item.frame.source] += 1
                if not start_s and len(seen) == len(sources):
                    start_s, before = now_s, _cpu(camera)
                    counts.clear()
            # A machine that stands still for longer than the measurement has no result yet, and is waited for.
            is_over = start_s and now_s - start_s >= (seconds if counts else max(seconds, _CONNECT_S))
            if is_over or (item_ends(item) and start_s):
                break
            if not start_s and now_s - begun_s > _CONNECT_S:
                raise RuntimeError(f"only {len(seen)} of {len(sources)} sources gave a result within {_CONNECT_S:g} s")
        elapsed_s, after = time.perf_counter() - start_s, _cpu(camera)
    cores = {name: (after[name] - before.get(name, 0.0)) / elapsed_s for name in after}
    return Counted(results=counts, seconds=elapsed_s, cores=cores)


def item_ends(item: Any) -> bool:
    return not isinstance(item, Result) and item.kind == "ended"


def _cpu(camera: Camera | None) -> dict[str, float]:
    """Seconds of a core so far, by task."""
    own, cameras = os.getpid(), set(tree(camera.pid)) if camera else set()
    captures = [pid for pid in tree(own) if pid != own and pid not in cameras]
    found = {"inference": cpu_s(own), "capture": sum(map(cpu_s, captures))}
    return found | ({"camera": sum(map(cpu_s, cameras))} if camera else {})


def bare_fps(plan: Plan) -> float:
    """Frames per second of the model alone, by the faster way."""
    return max(_loop_fps(call, plan.seconds / 4, batch) for _, call, batch in bare_calls(plan.model))


def _loop_fps(call: Callable[[], object], seconds: float, batch: int) -> float:
    for _ in range(_WARM_UP_RUNS):
        call()
    start_s, number = time.perf_counter(), 0
    while time.perf_counter() - start_s < seconds:
        call()
        number += batch
    return number / (time.perf_counter() - start_s)
