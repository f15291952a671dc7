"""Runs a benchmark: warm-up, latency, throughput, and the machine's readings meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgerpn.images.header import Exif
from edgerpn.machine import available_cores
from edgerpn.proposals import Proposals
from edgerpn.runtime.backends.contract import PartsTimer
from edgerpn.runtime.bench.config import BenchConfig
from edgerpn.runtime.bench.facts import MemoryWatch, describe_artifact, describe_machine
from edgerpn.runtime.bench.frames import BenchFrame, FrameSet
from edgerpn.runtime.bench.phases import Distribution, Phase, distribution, run_serial, run_throughput, warm_up
from edgerpn.runtime.bench.reading import Reading, summarize
from edgerpn.runtime.bench.report import MADE_UP, BenchReport, FrameFacts, PhaseReport, RecallFacts, make_phase_report
from edgerpn.runtime.bench.sampler import Sampler
from edgerpn.runtime.model import Model, load
from edgerpn.runtime.onnx_session import Provider
from edgerpn.runtime.opencv import single_threaded

_NUM_PARTS = 50
_MAX_SIZES = 10

MeasureRecall = Callable[[Mapping[int, Proposals]], RecallFacts]
"""From the proposals of each image, by its number, to the recall."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchRequest:
    """The artifact to measure, and its frames."""

    model: Path
    """ONNX file or engine."""
    command: str
    """Command line, for the report."""
    images: tuple[Path, ...] = ()
    """Photographs; empty: made-up frames."""
    exif: Exif | None = None
    """Whether they are turned by their EXIF orientation; None: as the model's manifest says."""
    origin: str = MADE_UP
    """Origin of the photographs, for the report."""
    measure_recall: MeasureRecall | None = None
    """Measures the recall of the proposals of all images."""
    providers: tuple[Provider, ...] = ()
    """ONNX Runtime execution providers; empty: the default."""
    threads: int | None = None
    """CPU threads of one inference; None: all cores for latency, and one less for throughput, as in `edgerpn run`."""
    allow_host_code: bool = False
    """Whether a version-compatible engine may contain code for the CPU."""


def run_bench(
    request: BenchRequest, config: BenchConfig, *, log: Callable[[str], None] = lambda _: None
) -> BenchReport:
    """Measures an artifact on this machine; takes the time that the settings name, and loading.

    Args:
        request: The artifact and the frames.
        config: Durations and limits.
        log: Called with a line for each phase.

    Raises:
        EngineLoadError: The model cannot be loaded.
        ManifestError: The model's manifest is missing or does not fit.
        DataError: A photograph cannot be read.
        InferenceError: The backend failed.
        MissingDependencyError: A package is not installed.
    """
    machine, memory = describe_machine(), MemoryWatch()
    proposals: dict[int, Proposals] = {}

    def keep(frame: BenchFrame, found: Proposals) -> None:
        if request.measure_recall is not None:
            proposals[frame.index] = frame.restore(found)

    with contextlib.ExitStack() as stack:
        stack.enter_context(single_threaded())
        model = stack.enter_context(_open(request, config, request.threads))
        busy = stack.enter_context(_busy_model(request, config, model))
        frames = FrameSet(
            request.images,
            source_hw=model.manifest.input.source_hw,
            frame_hw=config.frame_hw,
            max_mib=config.frames_mib,
            exif=request.exif or model.manifest.input.exif_reading,
        )
        with Sampler(config.sample_ms) as sampler:
            log(f"warm-up, {config.warm_up_s:g} s")
            warm_up(busy, frames.kept, config.warm_up_s)
            log(f"one frame after the other, {config.serial_s:g} s")
            serial = run_serial(model, frames.kept, config.serial_s)
            log(f"every slot busy, {config.throughput_s:g} s")
            throughput = run_throughput(
                busy, frames.kept, config.throughput_s, num_sources=config.sources, on_proposals=keep
            )
        memory_taken = memory.finish()
        parts_ms = _time_parts(model)
        if request.measure_recall is not None:
            for frame in frames.rest():
                keep(frame, busy(frame.image))
        prefers_gpu = not model.backend.is_cpu

        def report_of(phase: Phase) -> PhaseReport:
            readings = sampler.between(phase.start_s, phase.end_s)
            return make_phase_report(phase, summarize(readings, prefers_gpu=prefers_gpu))

        return BenchReport(
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            command=request.command,
            artifact=describe_artifact(request.model, model.manifest),
            machine=machine,
            memory=memory_taken,
            backend=model.backend.name,
            is_cpu=model.backend.is_cpu,
            slots=busy.backend.frames_in_flight,
            settings=config,
            frames=FrameFacts(
                origin=request.origin,
                num_images=frames.num_images,
                num_kept=len(frames.kept),
                sizes_hw=tuple(frames.sizes_hw()[:_MAX_SIZES]),
            ),
            serial=report_of(serial),
            throughput=report_of(throughput),
            parts_ms=parts_ms,
            recall=_recall(request, proposals, model.manifest.proposals.num_proposals),
            tools=tuple(sampler.tools),
            readings=tuple(_shifted(sampler.between(serial.start_s, throughput.end_s), serial.start_s)),
        )


def _open(request: BenchRequest, config: BenchConfig, threads: int | None) -> Model:
    return load(
        request.model,
        providers=request.providers or None,
        threads=threads,
        allow_host_code=request.allow_host_code,
        engine=config.engine,
    )


@contextlib.contextmanager
def _busy_model(request: BenchRequest, config: BenchConfig, model: Model) -> Iterator[Model]:
    """Yields the model of the throughput phase; on a CPU a second one, which leaves a core to its second caller."""
    if not model.backend.is_cpu or request.threads is not None or available_cores() == 1:
        yield model
        return
    with _open(request, config, available_cores() - 1) as busy:
        yield busy


def _recall(request: BenchRequest, proposals: Mapping[int, Proposals], num_proposals: int) -> RecallFacts | None:
    """Measures the recall, and leaves out AR@K at more proposals than the model gives, which would repeat another."""
    if request.measure_recall is None:
        return None
    found = request.measure_recall(proposals)
    shown = {
        name: value
        for name, value in found.metrics.items()
        if not (budget := re.fullmatch(r"AR@(\d+)", name)) or int(budget[1]) <= num_proposals
    }
    return dataclasses.replace(found, metrics=shown)


def _time_parts(model: Model) -> dict[str, Distribution]:
    """Times upload, inference and download where the backend can tell them apart."""
    backend = model.backend
    if not isinstance(backend, PartsTimer):
        return {}
    taken_ms = [backend.time_parts() for _ in range(_NUM_PARTS)]
    return {name: distribution([times[name] for times in taken_ms]) for name in taken_ms[0]}


def _shifted(readings: Sequence[Reading], start_s: float) -> Iterator[Reading]:
    return (dataclasses.replace(reading, at_s=round(reading.at_s - start_s, 3)) for reading in readings)
