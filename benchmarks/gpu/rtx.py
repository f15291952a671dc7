"""TensorRT-RTX from a bundle: its verdict, its first context, golden frames, parity, times."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.bundle import LIBRARY, unpack
from benchmarks.gpu.detector import expected
from benchmarks.gpu.engine import BareEngine, compare, judge, measure
from benchmarks.gpu.places import Place, open_place
from benchmarks.gpu.runner import Listener, Memory, from_torch, latencies
from benchmarks.gpu.session import Notes, Skip
from edgerpn import golden
from edgerpn.machine import resident_bytes
from edgerpn.proposals import Outputs
from edgerpn.runtime.backends.tensorrt import compatibility
from edgerpn.runtime.backends.tensorrt.backend import TensorRtBackend


def _open(request: dict[str, Any]) -> tuple[Place, Path]:
    """Returns the place and the engine, with the bundle's library on Python's path."""
    if not request["rehearse"]:
        found = unpack(Path(request["bundle"]), LIBRARY, Path(request["work"]) / "rtx")
        if found is not None:
            sys.path.insert(0, str(found))
    place = open_place(request)
    return place, place.rtx_engine(Path(request["models"]), Path(request["work"]))


def _backend(place: Place, engine: Path) -> TensorRtBackend:
    return TensorRtBackend(engine, library=place.rtx(), device=place.device)


def validity(request: dict[str, Any], notes: Notes) -> None:
    """Import, the library's verdict on the engine, deserialization, and the first context, which compiles."""
    start = time.perf_counter()
    place, engine = _open(request)
    library = place.rtx()
    notes(library=library.title, import_s=round(time.perf_counter() - start, 2))
    described = compatibility.read_manifest(engine)
    spec = compatibility.engine_spec(engine, described)
    host = compatibility.query_machine(spec, library=library, device=place.device)
    checks = compatibility.compare(engine, described, host)
    notes(checks={check.key: f"{check.verdict}: expected {check.expected}, found {check.found}" for check in checks})
    models, before = Path(request["models"]), resident_bytes()
    start = time.perf_counter()
    with place.device.active():
        free = place.device.free_bytes()
        frames = expected(models, "model").frames
        bare = BareEngine(engine.read_bytes(), library, place.device, frames=frames, batch=1)
        notes(
            context_s=round(time.perf_counter() - start, 2),
            host_mib=round((resident_bytes() - before) / 2**20, 1),
            gpu_mib=round((free - place.device.free_bytes()) / 2**20, 1),
            scratch_mib=round(bare.scratch_bytes / 2**20, 2),
            cuda_graph="works" if bare.why_no_graph is None else bare.why_no_graph,
        )
        bare.close()


def parity(request: dict[str, Any], notes: Notes) -> None:
    """The runner's load, golden frames, the proposals of ONNX Runtime on the CPU, and tensors in place."""
    place, engine = _open(request)
    listener, start = Listener(), time.perf_counter()
    backend = _backend(place, engine)
    notes(ran_by=backend.name, load_s=round(time.perf_counter() - start, 2), cuda_graph=listener.graph())
    notes(contexts=[report.text() for report in backend.contexts], frame_memory=backend.frame_memory.text())
    spec = backend.manifest
    if spec.golden is not None:
        wanted = golden.read(engine, spec)
        _compare(backend, wanted, "golden frames")
        notes(golden_frames=f"{len(wanted.frames)} pass")
    wanted = expected(Path(request["models"]), "model")
    _compare(backend, wanted, "frames of the bundle")
    notes(parity=f"{len(wanted.frames)} frames agree with ONNX Runtime on the CPU")
    results = {}
    for name, array in place.arrays(wanted.frames[:1]).items():
        pairs = zip(backend.infer_device(array)[:3], backend.infer(wanted.frames[:1])[:3], strict=True)
        results[name] = "equal" if all(np.array_equal(one, other) for one, other in pairs) else "differs from infer"
        notes(arrays=results)
    if "differs from infer" in results.values():
        notes.broken(f"infer_device: {results}")
    notes(warnings=listener.lines)
    backend.close()


def _compare(backend: TensorRtBackend, wanted: golden.Golden, where: str) -> None:
    parts = [backend.infer(frame[None]) for frame in wanted.frames]
    golden.compare(wanted, Outputs.join(parts), backend.manifest, where=where)


def share(request: dict[str, Any], notes: Notes) -> None:
    """Times of the engine and of the network alone, with and without a graph, and what they launch."""
    place, engine = _open(request)
    models, library = Path(request["models"]), place.rtx()
    plans = {"whole": engine, "network": engine if request["rehearse"] else models / "network.engine"}
    frames = expected(models, "model").frames
    with place.device.active():
        engines = {
            name: BareEngine(path.read_bytes(), library, place.device, frames=frames, batch=1)
            for name, path in plans.items()
        }
        notes(**measure(engines["whole"], request["seconds"], "engine alone"))
        figures = compare(engines, 2 * request["seconds"])
        notes(**{key: value for key, value in figures.items() if key != "latency_ms"})
        notes(in_turns_ms=figures["latency_ms"])
        judge(figures["share"], place.device.info, notes)
        for one in engines.values():
            one.close()


def runtime(request: dict[str, Any], notes: Notes) -> None:
    """Times of the ways through the runtime, its memory, and PyTorch's memory in place."""
    place, engine = _open(request)
    models, memory = Path(request["models"]), Memory(place.device)
    backend = _backend(place, engine)
    memory.note("after load")
    frames = expected(models, "model").frames
    with np.load(models / "camera.npz") as arrays:
        camera = arrays["camera"]
    latency = latencies(backend, place.device, frames, camera, request["seconds"])
    memory.note("after warm-up")
    notes(latency_ms=latency, memory_mib=memory.figures)
    try:
        notes(latency_ms=latency | from_torch(backend, frames, request["seconds"], notes))
    except (ModuleNotFoundError, Skip) as error:
        notes(zero_copy=f"skipped: {error}")
    backend.close()
