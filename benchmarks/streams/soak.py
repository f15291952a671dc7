"""Part `soak`: `edgerpn run` on a camera that dies again and again must not grow."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.machine import Usage, usage
from benchmarks.streams.camera import Camera
from benchmarks.streams.plan import Limit, Part, Plan, trend

ALLOWED = {
    "rss_mib": 8.0, "parent_rss_mib": 8.0, "descriptors": 2.0, "parent_descriptors": 2.0, "threads": 2.0,
    "parent_threads": 2.0, "shared_mib": 2.0, "shared_maps": 1.0, "processes": 1.0,
}  # fmt: skip
"""Growth over the soak that passes, three standard errors included. With the default settings there are some 55
connections: one descriptor, thread or ring of frames (5.3 MiB) that each of them left behind would be more than
twenty times as much, and one picture (0.7 MiB) four times."""

_FPS = 5.0
_LOG = "soak.log"
_DOWN_S = 1.0
_STOP_S = 20.0
_SHARE_OF_CYCLES = 0.8
_CYCLES_PATIENT = 3
_START_S = 60.0


def soak(plan: Plan) -> Part:
    """Samples just before each death, the longest time that the stream runs."""
    lines = plan.folder / "soak.jsonl"
    words = [sys.executable, "-m", "edgerpn", "run", str(plan.model), "--provider", "cpu", "--jsonl", str(lines)]
    with Camera(plan.pictures, plan.camera_wh, _FPS) as camera, (plan.folder / _LOG).open("wb") as output:
        process = subprocess.Popen([*words, camera.url], stdout=output, stderr=output)
        try:
            samples = _watch(plan, camera, process, lines)
        finally:
            _end(process)
    records = Records(lines)
    records.read()
    events = records.counts
    part = judge(plan, samples)
    # After the last death the part does not wait for a connection.
    enough = _SHARE_OF_CYCLES * (len(samples) - 1)
    limits = [Limit(what="connections after a death", value=events["connected"] - 1.0, sign=">=", bound=enough)]
    part.figures.update(events=events, deaths=len(samples), ended_with=process.returncode)
    return dataclasses.replace(part, limits=[*part.limits, *limits])


def judge(plan: Plan, samples: list[tuple[float, Usage]]) -> Part:
    """A line through each figure after the warm-up."""
    kept = [(time_s, one) for time_s, one in samples if time_s >= plan.warm_up_s]
    times_s = [time_s for time_s, _ in kept]
    rows: list[dict[str, Any]] = []
    limits = []
    for name, allowed in ALLOWED.items():
        values = [getattr(one, name) for _, one in kept]
        line = trend(times_s, values)
        rows.append(
            {
                "figure": name,
                "first": values[0] if values else None,
                "last": values[-1] if values else None,
                "max": max(values, default=None),
                "slope_per_hour": line.slope_per_s * 3600,
                "error_per_hour": line.error_per_s * 3600,
                "growth": line.growth,
                "growth_error": line.growth_error,
                "zero_within_3_errors": line.is_zero,
            }
        )
        limits.append(Limit(what=f"{name}: growth and 3 standard errors", value=line.worst, sign="<=", bound=allowed))
    notes = [
        f"{len(kept)} samples of {len(samples)}, one before each death of the camera, about every {plan.cycle_s:g} s; "
        f"the first {plan.warm_up_s:g} s do not count (caches of the allocator, code loaded at the first reconnect).",
        "growth: the slope of a least-squares line times the time between first and last sample. A figure passes when "
        "its growth and three standard errors stay within the limit: a growth that is zero within noise fails, too, "
        "when the noise is so large that it could hide a leak.",
        "All but the figures of the parent are sums over the run and its capture process; memory that both share "
        "counts twice in rss_mib.",
    ]
    series = {name: [getattr(one, name) for _, one in samples] for name in ALLOWED}
    return Part(
        name="soak", rows=rows, limits=limits, notes=notes,
        figures={"times_s": [round(time_s, 2) for time_s, _ in samples], **series},
    )  # fmt: skip


def _watch(plan: Plan, camera: Camera, process: subprocess.Popen[bytes], lines: Path) -> list[tuple[float, Usage]]:
    """Samples, with the time since the start; the camera died after each."""
    samples: list[tuple[float, Usage]] = []
    records = Records(lines)
    start_s = begun_s = time.monotonic()
    while begun_s + plan.cycle_s <= start_s + plan.soak_s:
        _wait_until_healthy(plan, records, process)
        time.sleep(max(0.0, begun_s + plan.cycle_s - time.monotonic()))
        samples.append((time.monotonic() - start_s, usage(process.pid)))
        camera.kill()
        begun_s = time.monotonic()
        time.sleep(_DOWN_S)
        records.read()
        camera.start()
    return samples


def _wait_until_healthy(plan: Plan, records: Records, process: subprocess.Popen[bytes]) -> None:
    """Waits for the first result and half a cycle more, so that all samples show a running stream.

    On a busy machine that may be late. A camera that died again at once would only lengthen the backoff.
    """
    end_s = time.monotonic() + max(_START_S, _CYCLES_PATIENT * plan.cycle_s)
    before = records.counts["results"]
    while records.counts["results"] == before and time.monotonic() < end_s:
        if process.poll() is not None:
            raise RuntimeError(f"edgerpn run ended with {process.returncode}: {_last_line(plan)}")
        time.sleep(0.1)
        records.read()
    time.sleep(plan.cycle_s / 2)


def _last_line(plan: Plan) -> str:
    lines = (plan.folder / _LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "it printed nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Records:
    """Counts the records of a file that grows: events by kind, and results as `results`."""

    def __init__(self, lines: Path) -> None:
        """Begins at the start of the file, which may not exist yet."""
        self.counts: Counter[str] = Counter()
        self._lines = lines
        self._position = 0

    def read(self) -> None:
        """Counts the new records."""
        if not self._lines.exists():
            return
        with self._lines.open("rb") as file:
            file.seek(self._position)
            *whole, _ = file.read().split(b"\n")
        self._position += sum(len(line) + 1 for line in whole)
        self.counts.update(json.loads(line).get("event", "results") for line in whole)
