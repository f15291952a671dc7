"""The layers of a fresh engine: names and types from the inspector, times from the profiler.

Needs a GPU, so that the tests reach only the reading of the inspector's text. A failure here costs the build nothing
but this table.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

WARM_UP = 10
RUNS = 50


def inspect_layers(trt: Any, logger: Any, plan: Any, *, batch: int, is_timed: bool) -> dict[str, Any]:
    """The layers of an engine.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        logger: One of its loggers.
        plan: The serialized engine.
        batch: Frames to time with.
        is_timed: Whether to run the engine, for the time of each layer.

    Returns:
        `num_layers`, `layers` (name, precision, time_ms each), and `note` for people when something did not work.
    """
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return {"num_layers": None, "layers": [], "note": "this GPU cannot load the engine to list its layers"}
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = read_layers(text)
    note = None if layers else "the library told nothing about the engine's layers"
    if is_timed:
        try:
            times = _time_layers(trt, engine, batch)
        except (OSError, RuntimeError, ValueError) as error:
            note = f"the layers could not be timed: {error}"
        else:
            layers = [{**layer, "time_ms": times.get(layer["name"])} for layer in layers]
    return {"num_layers": engine.num_layers, "layers": layers, "note": note}


def read_layers(text: str) -> list[dict[str, Any]]:
    """Name and output types of each layer in the inspector's JSON; TensorRT 11 split the one field for types in two.

    With little detail in the engine a layer is a plain name; its precision is then empty.
    """
    try:
        entries = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return []
    layers = []
    for entry in entries:
        if isinstance(entry, str):
            layers.append({"name": entry, "precision": "", "time_ms": None})
            continue
        outputs = [output for output in entry.get("Outputs", []) if isinstance(output, dict)]
        types = [str(output.get("DataType") or output.get("Format/Datatype") or "") for output in outputs]
        precision = ", ".join(dict.fromkeys(name for name in types if name))
        layers.append({"name": str(entry.get("Name", "")), "precision": precision, "time_ms": None})
    return layers


def _time_layers(trt: Any, engine: Any, batch: int) -> dict[str, float]:
    """Mean time of each layer by name, milliseconds, on black frames: with fixed shapes the content does not matter."""
    sums: dict[str, float] = {}

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            sums[layer_name] = sums.get(layer_name, 0.0) + ms

    profiler = Profiler()
    cuda = ctypes.CDLL("libcuda.so.1")
    with _stream(cuda) as stream, _buffers(cuda) as allocate:
        context = engine.create_execution_context()
        if context is None:
            raise RuntimeError("no execution context")
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                context.set_input_shape(name, (batch, *tuple(engine.get_tensor_shape(name))[1:]))
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            itemsize = np.dtype(trt.nptype(engine.get_tensor_dtype(name))).itemsize
            size = int(np.prod(tuple(context.get_tensor_shape(name)))) * itemsize
            context.set_tensor_address(name, allocate(size))
        for run in range(WARM_UP + RUNS):
            if run == WARM_UP:
                context.profiler = profiler
            if not context.execute_async_v3(stream):
                raise RuntimeError("the engine does not run")
            _check(cuda.cuStreamSynchronize(ctypes.c_void_p(stream)), "cuStreamSynchronize")
    return {name: round(total / RUNS, 5) for name, total in sums.items()}


def _check(status: int, call: str) -> None:
    if status:
        raise RuntimeError(f"{call} gave the CUDA error {status}")


@contextmanager
def _stream(cuda: ctypes.CDLL) -> Iterator[int]:
    """A stream in the primary context of the first GPU."""
    device, context, stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    _check(cuda.cuInit(0), "cuInit")
    _check(cuda.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    _check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
    try:
        _check(cuda.cuCtxSetCurrent(context), "cuCtxSetCurrent")
        _check(cuda.cuStreamCreate(ctypes.byref(stream), 1), "cuStreamCreate")  # 1: does not wait for stream 0
        yield stream.value or 0
        cuda.cuStreamDestroy_v2(stream)
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(device)


@contextmanager
def _buffers(cuda: ctypes.CDLL) -> Iterator[Any]:
    """A function that allocates zeroed memory of the GPU, all of which is freed at the end."""
    pointers: list[ctypes.c_uint64] = []

    def allocate(size: int) -> int:
        pointer = ctypes.c_uint64()
        _check(cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(max(size, 1))), "cuMemAlloc")
        pointers.append(pointer)
        _check(cuda.cuMemsetD8_v2(pointer, ctypes.c_ubyte(0), ctypes.c_size_t(max(size, 1))), "cuMemsetD8")
        return pointer.value

    try:
        yield allocate
    finally:
        for pointer in pointers:
            cuda.cuMemFree_v2(pointer)
