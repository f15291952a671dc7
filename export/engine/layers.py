"""The layers of a fresh engine: names and types from the library's inspector, times from its profiler.

Both need a GPU; the tests run the timing on a stand-in, and it has not run on a GPU yet. A failure here does not fail
the build.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

import numpy as np

from edgerpn.errors import EngineLoadError, MissingDependencyError
from edgerpn.runtime.backends.tensorrt.context import ScratchArena, create_context, make_runtime_config
from edgerpn.runtime.backends.tensorrt.cuda import CudaError
from edgerpn.runtime.backends.tensorrt.cuda_provider import open_device

WARM_UP = 10
RUNS = 50


def inspect_layers(
    trt: Any, logger: Any, plan: Any, *, batch: int, is_timed: bool, is_version_compatible: bool = False
) -> dict[str, Any]:
    """Lists the layers of an engine.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        logger: One of its loggers.
        plan: The serialized engine.
        batch: Frames to time with.
        is_timed: Whether to run the engine, for the time of each layer.
        is_version_compatible: Whether the engine brings code for the CPU, which the library has just written.

    Returns:
        `num_layers`, `layers` (name, precision, time_ms each), and `note`, a line for people when something failed.
    """
    runtime = trt.Runtime(logger)
    if is_version_compatible:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return {"num_layers": None, "layers": [], "note": "this GPU cannot load the engine to list its layers"}
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = read_layers(text)
    note = None if layers else "the library returned nothing about the engine's layers"
    if is_timed:
        try:
            times = _time_layers(trt, logger, engine, batch)
        except (CudaError, EngineLoadError, MissingDependencyError, RuntimeError, ValueError) as error:
            note = f"the layers could not be timed: {error}"
        else:
            layers = [{**layer, "time_ms": times.get(layer["name"])} for layer in layers]
    return {"num_layers": engine.num_layers, "layers": layers, "note": note}


def read_layers(text: str) -> list[dict[str, Any]]:
    """Reads name and output types of each layer from the inspector's JSON, in the forms of TensorRT 10 and 11.

    In an engine with little detail a layer is only a name; its precision is then empty.
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


def _time_layers(trt: Any, logger: Any, engine: Any, batch: int) -> dict[str, float]:
    """Mean time of each layer by name, milliseconds, on black frames: with fixed shapes the content does not matter."""
    sums: dict[str, float] = {}

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            sums[layer_name] = sums.get(layer_name, 0.0) + ms

    profiler, device = Profiler(), open_device()
    with device.active(), ExitStack() as resources:
        stream = device.create_stream()
        resources.callback(device.destroy_stream, stream)
        arena = ScratchArena(device, stream)
        resources.callback(arena.free)
        context = create_context(trt, engine, make_runtime_config(trt, engine))
        if context is None:
            raise RuntimeError("the library cannot make an execution context")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        for name in inputs:
            context.set_input_shape(name, (batch, *tuple(engine.get_tensor_shape(name))[1:]))
        arena.add(context, engine, logger)
        for name in names:
            itemsize = np.dtype(trt.nptype(engine.get_tensor_dtype(name))).itemsize
            size = int(np.prod(tuple(context.get_tensor_shape(name)))) * itemsize
            address = device.allocate(size)
            resources.callback(device.free, address)
            context.set_tensor_address(name, address)
            if name in inputs:
                black = device.allocate_host(size, is_mapped=False).array
                black[:] = 0
                device.upload(address, black, stream)
                device.synchronize(stream)
        for run in range(WARM_UP + RUNS):
            if run == WARM_UP:
                context.profiler = profiler
            if not context.execute_async_v3(stream):
                raise RuntimeError("the library refuses to run the engine")
            device.synchronize(stream)
    return {name: round(total / RUNS, 5) for name, total in sums.items()}
