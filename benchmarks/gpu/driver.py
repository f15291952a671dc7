"""The machine, and our calls of its driver, each alone: what the runner stands on."""

from __future__ import annotations

import dataclasses
import gc
from typing import Any

import numpy as np

from benchmarks.gpu.hardware import hardware
from benchmarks.gpu.places import Frames, open_place
from benchmarks.gpu.session import Notes
from edgerpn.runtime.backends.tensorrt.cuda import CudaError, Device

_NUM_BYTES = 16 << 20


def driver(request: dict[str, Any], notes: Notes) -> None:
    """Facts; then copies, mapped memory, capture, replay, waits, and memory that comes back."""
    hardware(request, notes)
    device = open_place(request).device
    notes(device=dataclasses.asdict(device.info))
    with device.active():
        free = device.free_bytes()
        stream = device.create_stream()
        for check in (_copies, _mapped, _graph):
            name = check.__name__.strip("_")
            try:
                notes(**{name: check(device, stream)})
            except CudaError as error:
                notes(**{name: str(error)})
                notes.broken(f"{name}: {error}")
        device.destroy_stream(stream)
        gc.collect()
        notes(lost_mib=round((free - device.free_bytes()) / 2**20, 1))


def _random(seed: int) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, _NUM_BYTES, dtype=np.uint8)


def _equal(found: Frames, wanted: Frames) -> str:
    if not np.array_equal(found, wanted):
        raise CudaError("copy", f"{np.count_nonzero(found != wanted)} of {wanted.size} bytes are wrong")
    return "equal"


def _copies(device: Device, stream: int) -> dict[str, object]:
    """Pinned memory to the GPU, within it, and back; GB/s by the GPU's clock."""
    there, back = (device.allocate_host(_NUM_BYTES, is_mapped=False) for _ in range(2))
    first, second = (device.allocate(_NUM_BYTES) for _ in range(2))
    there.array[:], back.array[:] = _random(0), 0
    ways = {
        "upload": lambda: device.upload(first, there.array, stream),
        "within": lambda: device.copy_device(second, first, _NUM_BYTES, stream),
        "download": lambda: device.download(back.array, second, stream),
    }
    for start in ways.values():
        start()
    device.synchronize(stream, is_blocking=True)
    bytes_are = _equal(back.array, there.array)
    rates = {name: [device.time_ms(start, stream) for _ in range(5)] for name, start in ways.items()}
    device.free(first)
    device.free(second)
    fastest = {f"{name}, GB/s": round(_NUM_BYTES / max(min(times), 1e-6) / 1e6, 1) for name, times in rates.items()}
    return {"bytes": bytes_are, **fastest}


def _mapped(device: Device, stream: int) -> str:
    """The GPU reads host memory by its mapped address."""
    mapped, back = device.allocate_host(_NUM_BYTES, is_mapped=True), device.allocate_host(_NUM_BYTES, is_mapped=False)
    mapped.array[:], back.array[:] = _random(1), 0
    address = device.allocate(_NUM_BYTES)
    assert mapped.device_address is not None, "mapped memory has an address"
    device.copy_device(address, mapped.device_address, _NUM_BYTES, stream)
    device.download(back.array, address, stream)
    device.synchronize(stream)
    device.free(address)
    return _equal(back.array, mapped.array)


def _graph(device: Device, stream: int) -> str:
    """Copies as a graph: recorded without running, then replayed on other bytes; memory freed meanwhile is no harm."""
    there, back = (device.allocate_host(_NUM_BYTES, is_mapped=False) for _ in range(2))
    address = device.allocate(_NUM_BYTES)
    there.array[:], back.array[:] = _random(2), 0
    spare = device.allocate_host(4096, is_mapped=False)
    device.begin_capture(stream)
    device.upload(address, there.array, stream)
    del spare
    gc.collect()
    device.download(back.array, address, stream)
    graph = device.end_capture(stream)
    device.synchronize(stream)
    if back.array.any():
        raise CudaError("capture", "the recorded copies ran")
    for seed in (3, 4):
        there.array[:] = _random(seed)
        device.launch_graph(graph, stream)
        device.synchronize(stream)
        _equal(back.array, there.array)
    device.destroy_graph(graph)
    device.free(address)
    return "recorded once, replayed twice, equal"
