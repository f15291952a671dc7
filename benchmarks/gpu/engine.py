"""Engines by themselves, by the GPU's clock, with and without a CUDA graph, and the cost of the proposal stage."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.gpu.launches import count_launches
from benchmarks.gpu.session import Notes, Skip
from benchmarks.gpu.timing import in_turns
from edgerpn.errors import EdgeRpnError
from edgerpn.runtime.backends.tensorrt.context import ScratchArena, create_context, make_runtime_config
from edgerpn.runtime.backends.tensorrt.cuda import CudaError, Device, DeviceInfo
from edgerpn.runtime.backends.tensorrt.cuda_provider import open_device
from edgerpn.runtime.backends.tensorrt.library import TensorRtLibrary, import_library, logger_of, make_runtime

_ITEM_BYTES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT32": 4, "INT64": 8, "INT8": 1, "UINT8": 1, "BOOL": 1}
LIMIT = 0.15
"""Share of the whole that the proposal stage may take on a GPU like Orin's, at K = 100 and 1000 boxes of each level."""
JUDGED = ("8.7",)
"""Compute capabilities on which the limit is judged. On a larger GPU the network takes next to nothing."""
BACK_TO_BACK = 50
"""Launches that are timed as one, for what a busy GPU does in a second."""


class BareEngine:
    """One engine at one batch size, with memory, stream and, where capture works, a CUDA graph of the engine alone."""

    def __init__(
        self, plan: bytes, library: TensorRtLibrary, device: Device, *, frames: npt.NDArray[np.uint8], batch: int
    ) -> None:
        """Loads it; called inside `Device.active()`, as all methods.

        Args:
            plan: Content of the engine's file.
            library: The library that runs it.
            device: The GPU.
            frames: (N, H, W, 3); the first `batch` of them are its input.
            batch: Frames in a batch, if it is open in the engine.

        Raises:
            Skip: The library refuses the engine on this GPU.
        """
        module = library.module
        self.device, self.log = device, logger_of(module)
        try:
            self._runtime = make_runtime(module)
        except EdgeRpnError as error:
            raise Skip(str(error)) from error
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise Skip(f"{library.title} refuses the engine on {device.info.name}: {self.log.take_lines()}")
        self._context = create_context(module, self._engine, make_runtime_config(module, self._engine))
        if self._context is None:
            raise Skip(f"{library.title} cannot make an execution context: {self.log.take_lines()}")
        self.stream = device.create_stream()
        self._arena = ScratchArena(device, self.stream)
        self._bind(module, frames, batch)
        self.why_no_graph, self._graph = self._capture()

    def _bind(self, module: Any, frames: npt.NDArray[np.uint8], batch: int) -> None:
        engine, context, device = self._engine, self._context, self.device
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        for name in names:
            if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT:
                shape = tuple(engine.get_tensor_shape(name))
                context.set_input_shape(name, (batch if shape[0] == -1 else shape[0], *shape[1:]))
        self.scratch_bytes = self._arena.add(context, engine, self.log)
        for name in names:
            shape = tuple(context.get_tensor_shape(name))
            size = int(np.prod(shape)) * _ITEM_BYTES[engine.get_tensor_dtype(name).name]
            address = device.allocate(max(size, 1))
            context.set_tensor_address(name, address)
            if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT:
                host = device.allocate_host(size, is_mapped=False)
                host.array[:] = np.resize(frames, shape).reshape(-1).view(np.uint8)
                device.upload(address, host.array, self.stream)
                device.synchronize(self.stream)

    def enqueue(self) -> None:
        """Starts the work, kernel by kernel."""
        if not self._context.execute_async_v3(self.stream):
            raise Skip(f"the library refuses to run the engine: {self.log.take_lines()}")

    def launch(self) -> None:
        """Starts the work, as a graph if there is one."""
        if self._graph is None:
            self.enqueue()
        else:
            self.device.launch_graph(self._graph, self.stream)

    def launches(self) -> dict[str, int] | str:
        """Returns the number of launches of one run by kind, or why they cannot be counted."""
        if self.why_no_graph is not None:
            return f"not counted: {self.why_no_graph}"
        return count_launches(self.stream, self.enqueue)

    def close(self) -> None:
        """Frees the engine and its scratch memory; inputs and outputs go with the process."""
        self.device.synchronize(self.stream)
        if self._graph is not None:
            self.device.destroy_graph(self._graph)
        self._graph = self._context = self._engine = self._runtime = None
        self._arena.free()

    def _capture(self) -> tuple[str | None, int | None]:
        self.enqueue()
        self.device.synchronize(self.stream)
        if self.device.info.why_no_graphs is not None:
            return self.device.info.why_no_graphs, None
        if hasattr(self._context, "is_stream_capturable") and not self._context.is_stream_capturable(self.stream):
            return "the library reports that this engine cannot be captured", None
        try:
            self.device.begin_capture(self.stream)
            is_started = self._context.execute_async_v3(self.stream)
            graph = self.device.end_capture(self.stream)
        except CudaError as error:
            return str(error), None
        return (None, graph) if is_started else (f"refused while capturing: {self.log.take_lines()}", None)


def opened(library: str) -> tuple[TensorRtLibrary, Device]:
    """Library and GPU.

    Raises:
        Skip: One of them does not work here.
    """
    try:
        return import_library("tensorrt-rtx" if library == "tensorrt-rtx" else "tensorrt"), open_device()
    except EdgeRpnError as error:
        raise Skip(str(error)) from error


def measure(bare: BareEngine, seconds: float, label: str) -> dict[str, Any]:
    """Latencies of one engine: kernel by kernel, as a graph, and many graphs back to back."""
    time_ms = bare.device.time_ms
    runs = {f"{label}, no graph": lambda: time_ms(bare.enqueue, bare.stream)}
    if bare.why_no_graph is None:
        runs[f"{label}, graph"] = lambda: time_ms(bare.launch, bare.stream)

    def many() -> None:
        for _ in range(BACK_TO_BACK):
            bare.launch()

    latency = in_turns(runs, seconds)
    busy = [time_ms(many, bare.stream) / BACK_TO_BACK for _ in range(5)]
    return {"latency_ms": latency, "back_to_back_ms": {label: round(float(np.median(busy)), 4)}}


def engine(request: dict[str, Any], notes: Notes) -> None:
    """Times an engine alone, without copies, at each of the batch sizes."""
    library, device = opened(request["library"])
    plan, frames = Path(request["engine"]).read_bytes(), np.load(request["frames"])
    figures: dict[str, Any] = {"latency_ms": {}, "back_to_back_ms": {}, "cuda_graph": {}}
    with device.active():
        for batch in request["batches"]:
            start = time.perf_counter()
            bare = BareEngine(plan, library, device, frames=frames, batch=batch)
            label = f"engine alone, batch {batch}"
            figures[f"ready after, batch {batch}, s"] = round(time.perf_counter() - start, 2)
            figures["cuda_graph"][label] = "works" if bare.why_no_graph is None else bare.why_no_graph
            for key, values in measure(bare, request["seconds"], label).items():
                figures[key] |= values
            notes(**figures)
            bare.close()


def cut(request: dict[str, Any], notes: Notes) -> None:
    """Writes the graph from the frames to logits and deltas of every level."""
    import onnx

    from edgerpn.export.precision.blocks import DELTAS_WEIGHT, LOGITS_WEIGHT, ancestors

    proto = onnx.load(request["onnx"])
    # Weights in half precision have a name that begins with that of the float32 ones.
    heads = [
        node for node in proto.graph.node if any(name.startswith((LOGITS_WEIGHT, DELTAS_WEIGHT)) for name in node.input)
    ]
    ends = [node.output[0] for node in heads if node.op_type == "Conv"]
    if not ends:
        raise Skip(f"{Path(request['onnx']).name} has no convolution with the weights {LOGITS_WEIGHT}")
    kept = ancestors(proto, ends)
    used = {name for node in kept for name in node.input}
    types = {value.name: value.type for value in onnx.shape_inference.infer_shapes(proto).graph.value_info}
    graph = onnx.helper.make_graph(
        kept,
        "network",
        proto.graph.input,
        [onnx.ValueInfoProto(name=name, type=types[name]) for name in ends],
        [tensor for tensor in proto.graph.initializer if tensor.name in used],
    )
    part = onnx.helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    onnx.checker.check_model(part)
    onnx.save(part, request["cut"])
    notes(nodes=len(kept), nodes_of_whole=len(proto.graph.node), outputs=len(ends))


def stage(request: dict[str, Any], notes: Notes) -> None:
    """Builds the cut network, and times it beside the whole and, when it is there, the whole with all candidates."""
    from edgerpn.errors import EdgeRpnError
    from edgerpn.export.engine.libraries import load_library

    try:
        trt = load_library(request["library"])
    except EdgeRpnError as error:
        raise Skip(str(error)) from error
    start = time.perf_counter()
    plan = build_plan(trt, request["cut"], request["compute_capability"])
    notes(network_build_s=round(time.perf_counter() - start, 2), network_mb=round(len(plan) / 1e6, 3))
    if not request["has_gpu"]:
        notes(share="not timed: there is no NVIDIA GPU")
        return
    library, device = opened(request["library"])
    plans = {"network": plan, "whole": Path(request["whole"]).read_bytes()}
    if request["all_candidates"] is not None:
        plans["whole, all candidates"] = Path(request["all_candidates"]).read_bytes()
    frames = np.load(request["frames"])
    with device.active():
        engines = {name: BareEngine(data, library, device, frames=frames, batch=1) for name, data in plans.items()}
        figures = compare(engines, request["seconds"])
        for one in engines.values():
            one.close()
    notes(**figures)
    judge(figures["share"], device.info, notes)


def judge(share: float, gpu: DeviceInfo, notes: Notes) -> None:
    """Holds the share of the proposal stage against the limit, on the GPUs that the limit is for."""
    if gpu.compute_capability not in JUDGED:
        notes(verdict=f"reported only: the limit is for compute capability {', '.join(JUDGED)}")
    elif share > LIMIT:
        notes.broken(f"the proposal stage takes {share:.1%} of the engine, but may take at most {LIMIT:.0%}")


def compare(engines: dict[str, BareEngine], seconds: float) -> dict[str, Any]:
    """Alternating latencies, and the share of the whole that is not the network, by the medians."""
    runs = {f"{name}, batch 1": partial(one.device.time_ms, one.launch, one.stream) for name, one in engines.items()}
    latency = in_turns(runs, seconds)
    network = latency["network, batch 1"]["p50"]
    shares = {
        name.replace("whole", "share"): round(1 - network / latency[f"{name}, batch 1"]["p50"], 4)
        for name in engines
        if name != "network"
    }
    launches = {name: one.launches() for name, one in engines.items()}
    return {"latency_ms": latency, **shares, "limit": LIMIT, "launches": launches}


def network(request: dict[str, Any], notes: Notes) -> None:
    """Builds the cut network into a file, for a machine that has no builder."""
    from edgerpn.export.engine.libraries import load_library

    start = time.perf_counter()
    plan = build_plan(load_library(request["library"]), request["onnx"], None)
    Path(request["engine"]).write_bytes(plan)
    notes(build_s=round(time.perf_counter() - start, 2), mb=round(len(plan) / 1e6, 3))


def build_plan(trt: Any, onnx_file: str, compute_capability: str | None) -> bytes:
    """Returns a plan with the options of `edgerpn build`, which itself takes whole graphs only.

    Raises:
        Skip: The library refuses; with its message.
    """
    from edgerpn.export.engine.options import BuildConfig
    from edgerpn.export.engine.worker import make_options

    log = logger_of(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    if not trt.OnnxParser(network, log).parse_from_file(onnx_file):
        raise Skip(f"the library's parser refuses the network alone: {log.take_lines()}")
    name = f"SM{(compute_capability or '').replace('.', '')}"
    is_named = hasattr(trt, "ComputeCapability") and name in trt.ComputeCapability.__members__
    config = BuildConfig(compute_capabilities=(compute_capability,) if compute_capability and is_named else ())
    options = make_options(trt, builder, config)
    plan = builder.build_serialized_network(network, options)
    if plan is None:
        raise Skip(f"the library builds no engine of the network alone: {log.take_lines()}")
    return bytes(plan)
