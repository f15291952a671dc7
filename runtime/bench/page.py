"""The page of a benchmark's report: one HTML file without script, see `edgerpn.page`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from edgerpn.page import head_cells, headlines, page, section, table, text_pairs
from edgerpn.runtime.bench.reading import INPUT_RAILS, Range, Reading
from edgerpn.runtime.bench.report import MADE_UP, BenchReport, PhaseReport, memory_text

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 620, 190, 56, 24, 14
_SERIES = ("--series-1", "--series-2", "--series-3")

Line = Sequence[tuple[float, float]]


def render(report: BenchReport) -> str:
    """Returns the page of a report."""
    machine, row = report.machine, report.row
    title = f"{row['model']} ({row['precision']}) on {machine.title}"
    introduction = (
        f"Measured {report.created} with {report.backend}"
        f"{f' in power mode {machine.power_mode}' if machine.power_mode else ''}, on "
        f"{'made-up frames' if report.frames.origin == MADE_UP else f'photographs of {report.frames.origin}'}. "
        "Latency is of one frame after the other; rate and power are of the runner with every slot busy."
    )
    sections = (
        headlines(_headlines(report)),
        _warnings(report.warnings),
        _latency(report),
        _rates(report),
        _recall(report),
        _charts(report),
        _telemetry(report),
        text_pairs("Artifact and machine", "value", _identity(report)),
        section("Repeat it", f"<pre><code>{escape(report.command)}</code></pre>"),
    )
    return page(title, introduction, sections)


def _headlines(report: BenchReport) -> list[tuple[str, str, str]]:
    total, busy = report.serial.phase.stage_ms["total"], report.throughput
    figures = [
        ("latency, median", f"{total.p50:.2f} ms", f"99th percentile {total.p99:.2f} ms"),
        ("rate", f"{busy.phase.frames_per_s:.1f}/s", f"{report.slots} in the model at once"),
    ]
    if busy.telemetry.total_w is not None and busy.frames_per_joule is not None:
        source = " + ".join(busy.telemetry.total_of)
        figures.append(("power", f"{busy.telemetry.total_w:.2f} W", source))
        figures.append(("efficiency", f"{busy.frames_per_joule:.2f}/J", "frames per joule, every slot busy"))
    recall = report.recall
    # A model with few proposals has no AR@100.
    name = next((name for name in ("AR@100", "AR@10") if recall is not None and name in recall.metrics), None)
    if recall is not None and name is not None:
        figures.append((name, f"{recall.metrics[name]:.3f}", f"on {recall.num_images} images of this run"))
    return figures


def _warnings(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return section("Reasons to doubt", f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>")


def _latency(report: BenchReport) -> str:
    stages = {**report.serial.phase.stage_ms, **{f"{name}, alone": ms for name, ms in report.parts_ms.items()}}
    longest = max(ms.p99 for ms in stages.values()) or 1.0
    rows = []
    for name, ms in stages.items():
        numbers = "".join(f"<td class='number'>{value:.2f}</td>" for value in (ms.p50, ms.p90, ms.p99, ms.max))
        bars = "".join(f"<i style='width:{100 * value / longest:.1f}%'></i>" for value in (ms.p99, ms.p50))
        bar = f"<td class='bars'><span class='bar' aria-hidden='true'>{bars}</span></td>"
        rows.append(f"<tr><th scope='row'>{escape(name)}</th>{numbers}{bar}</tr>")
    caption = "Milliseconds per frame, one after the other; dark bar: median, pale bar: 99th percentile."
    head = head_cells("stage", "p50", "p90", "p99", "max") + "<th scope='col'>compared</th>"
    note = (
        "<p class='muted'>Parts alone are waited for one by one, without a CUDA graph.</p>" if report.parts_ms else ""
    )
    return section("Latency", table(head, rows, caption=caption), note)


def _rates(report: BenchReport) -> str:
    rows = []
    for name, measured in _phases(report):
        phase, telemetry = measured.phase, measured.telemetry
        cells = (
            f"{phase.num_frames:,}", f"{phase.end_s - phase.start_s:.1f}", f"{phase.frames_per_s:.1f}",
            f"{phase.drift_percent:+.1f}", _optional(telemetry.total_w), _optional(measured.frames_per_joule),
        )  # fmt: skip
        numbers = "".join(f"<td class='number'>{escape(cell)}</td>" for cell in cells)
        rows.append(f"<tr><th scope='row'>{escape(name)}</th>{numbers}</tr>")
    head = head_cells("phase", "frames", "seconds", "frames/s", "drift, %", "watts", "frames/J")
    caption = "Drift: change of the rate from the first to the last third of a phase."
    return section("Rate and power", table(head, rows, caption=caption))


def _recall(report: BenchReport) -> str:
    if report.recall is None:
        return ""
    rows = (
        f"<tr><th scope='row'>{escape(name)}</th><td class='number'>{value:.3f}</td></tr>"
        for name, value in report.recall.metrics.items()
    )
    caption = f"{report.recall.num_images} images of {report.recall.data}, the proposals of this run."
    return section("Recall", table(head_cells("metric", "value"), rows, caption=caption))


def _charts(report: BenchReport) -> str:
    """Lines of power, clocks and the hottest sensor over the time of both phases, and their rates."""
    rates = {name: _rate_line(measured, report.serial.phase.start_s) for name, measured in _phases(report)}
    charts = [
        _chart("frames/s", rates),
        _chart("W", _rail_lines(report)),
        _chart("MHz", _lines(report.readings, lambda reading: reading.clock_mhz, ("GPU", "CPU", "memory"))),
        _chart("\N{DEGREE SIGN}C, the hottest sensor", {"hottest": _hottest(report.readings)}),
    ]
    shown = "".join(f"<figure>{chart}</figure>" for chart in charts if chart)
    caption = "<p class='muted'>Horizontal: seconds from the start of the serial phase.</p>"
    return section("Over time", f"<div class='small-charts'>{shown}</div>", caption)


def _rail_lines(report: BenchReport) -> dict[str, Line]:
    """Lines of the input rail, or of the largest rails."""
    means = {name: found.mean for name, found in report.throughput.telemetry.power_w.items()}
    order = sorted(means, key=lambda name: (name not in INPUT_RAILS, -means[name]))
    return _lines(report.readings, lambda reading: reading.power_w, order[: len(_SERIES)])


def _lines(
    readings: Sequence[Reading], values: Callable[[Reading], Mapping[str, float]], names: Sequence[str]
) -> dict[str, Line]:
    return {
        name: [(reading.at_s, values(reading)[name]) for reading in readings if name in values(reading)]
        for name in names
    }


def _hottest(readings: Sequence[Reading]) -> Line:
    return [(reading.at_s, max(reading.temperature_c.values())) for reading in readings if reading.temperature_c]


def _rate_line(measured: PhaseReport, zero_s: float) -> Line:
    phase = measured.phase
    rates = phase.frames_per_s_by_part
    part_s = (phase.end_s - phase.start_s) / len(rates)
    return [(phase.start_s - zero_s + (number + 0.5) * part_s, rate) for number, rate in enumerate(rates)]


def _chart(label: str, lines: Mapping[str, Line]) -> str:
    """Draws up to three lines over axes that begin at 0; empty without any that has two points."""
    shown = {name: line for name, line in lines.items() if len(line) > 1}
    if not shown:
        return ""
    right = max(x for line in shown.values() for x, _ in line) or 1.0
    top = max(y for line in shown.values() for _, y in line) or 1.0
    wide, high = _WIDTH - _LEFT - 8, _HEIGHT - _BOTTOM - _TOP

    def place(x: float, y: float) -> str:
        return f"{_LEFT + wide * max(0.0, x) / right:.1f},{_TOP + high * (1 - max(0.0, y) / top):.1f}"

    marks = "".join(
        f"<polyline points='{place(0, y)} {place(right, y)}' stroke='var(--line)' fill='none'/>"
        f"<text x='{_LEFT - 6}' y='{_TOP + high * (1 - y / top) + 4:.1f}' text-anchor='end'>{y:.4g}</text>"
        for y in (0.0, top / 2, top)
    )
    drawn = "".join(
        f"<polyline points='{' '.join(place(x, y) for x, y in line)}' fill='none' stroke-width='1.8' "
        f"stroke='var({color})'><title>{escape(name)}</title></polyline>"
        for color, (name, line) in zip(_SERIES, shown.items(), strict=False)
    )
    ends = (
        f"<text x='{_LEFT}' y='{_HEIGHT - 6}'>0</text>"
        f"<text x='{_WIDTH - 8}' y='{_HEIGHT - 6}' text-anchor='end'>{right:.4g} s</text>"
    )
    key = "".join(
        f"<li><span class='swatch' style='border-color:var({color});background:var({color})'></span>{escape(name)}</li>"
        for color, name in zip(_SERIES, shown, strict=False)
    )
    summary = escape(
        f"{label}: " + ", ".join(f"{name} up to {max(y for _, y in line):.4g}" for name, line in shown.items())
    )
    svg = (
        f"<svg class='chart' viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='{summary}' fill='var(--muted)' "
        f"font-size='14'>{marks}{ends}{drawn}</svg>"
    )
    return f"<figcaption>{escape(label)}</figcaption>{svg}<ul class='key'>{key}</ul>"


def _telemetry(report: BenchReport) -> str:
    """Table of every rail, clock and sensor while every slot was busy."""
    telemetry = report.throughput.telemetry
    groups = (
        ("W", telemetry.power_w), ("MHz", telemetry.clock_mhz), ("\N{DEGREE SIGN}C", telemetry.temperature_c),
        ("% load", telemetry.load_percent),
    )  # fmt: skip
    rows = [_range_row(name, unit, found) for unit, values in groups for name, found in values.items()]
    if not rows:
        return ""
    caption = f"{telemetry.num_readings} readings by {', '.join(report.tools)}, every slot busy."
    return section("Machine", table(head_cells("quantity", "mean", "least", "most", "unit"), rows, caption=caption))


def _range_row(name: str, unit: str, found: Range) -> str:
    numbers = "".join(f"<td class='number'>{value:.4g}</td>" for value in (found.mean, found.min, found.max))
    return f"<tr><th scope='row'>{escape(name)}</th>{numbers}<td class='number'>{unit}</td></tr>"


def _identity(report: BenchReport) -> dict[str, str]:
    machine, artifact = report.machine, report.artifact
    manifest, num_proposals = artifact.manifest, artifact.manifest["proposals"]["num_proposals"]
    clocks = {True: "one frequency only", False: "follow the load", None: "unknown"}[machine.has_pinned_clocks]
    rows = {
        "file": f"{artifact.file}, {artifact.num_bytes:,} bytes",
        "sha256": artifact.sha256,
        "model": f"{manifest['name']}, {manifest['precision']}, {num_proposals} proposals, for {manifest['target']}",
        "backend": report.backend,
        "memory": memory_text(report.memory),
        "board": machine.board or "",
        "processor": f"{machine.cpu}, {machine.cores} cores, {machine.memory_mib:,} MiB",
        "GPU": machine.gpu or "",
        "system": machine.system,
        "Jetson Linux": machine.jetson_linux or "",
        "power mode": machine.power_mode or "",
        "clocks": clocks,
        "Python": machine.python,
        **machine.versions,
    }
    return {name: text for name, text in rows.items() if text}


def _phases(report: BenchReport) -> tuple[tuple[str, PhaseReport], ...]:
    return ("one frame after the other", report.serial), ("every slot busy", report.throughput)


def _optional(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
