"""What the proposal stage costs: the network alone, cut at the head's outputs, beside the whole."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gpu_child import Notes, Skip
from gpu_engine import BareEngine, Clock, GpuClock, in_turns, opened

LIMIT = 0.15
"""Share of the whole that the proposal stage may take on a GPU, at K = 100 and 1000 boxes of each level."""


def cut(request: dict[str, Any], notes: Notes) -> None:
    """Writes the graph from the frames to logits and deltas of every level."""
    import onnx

    from edgerpn.export.precision.blocks import DELTAS_WEIGHT, LOGITS_WEIGHT, ancestors

    proto = onnx.load(request["onnx"])
    # Weights in half precision have a name that goes on behind that of the float32 ones.
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
        figures = compare(engines, GpuClock(device), request["seconds"])
        for one in engines.values():
            one.close()
    notes(**figures)
    if figures["share"] > LIMIT:
        notes.broken(f"the proposal stage takes {figures['share']:.1%} of the engine, and may take {LIMIT:.0%} at most")


def compare(engines: dict[str, BareEngine], clock: Clock, seconds: float) -> dict[str, Any]:
    """Latencies in turns, and the share of the whole that is not the network, by the medians."""
    runs = {f"{name}, batch 1": partial(clock.time_ms, one.launch, one.stream) for name, one in engines.items()}
    latency = in_turns(runs, seconds)
    network = latency["network, batch 1"]["p50"]
    shares = {
        name.replace("whole", "share"): round(1 - network / latency[f"{name}, batch 1"]["p50"], 4)
        for name in engines
        if name != "network"
    }
    return {"latency_ms": latency, **shares, "limit": LIMIT}


def build_plan(trt: Any, onnx_file: str, compute_capability: str | None) -> bytes:
    """A plan with the options of `edgerpn build`, which itself takes whole graphs only.

    Raises:
        Skip: The library refuses; with its words.
    """
    from edgerpn.runtime.backends.tensorrt.library import make_logger

    log = make_logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    if not trt.OnnxParser(network, log).parse_from_file(onnx_file):
        raise Skip(f"the library's parser refuses the network alone: {log.take_lines()}")
    options = builder.create_builder_config()
    options.clear_flag(trt.BuilderFlag.TF32)
    name = f"SM{(compute_capability or '').replace('.', '')}"
    if hasattr(trt, "ComputeCapability") and name in trt.ComputeCapability.__members__:
        options.num_compute_capabilities = 1
        options.set_compute_capability(trt.ComputeCapability.__members__[name], 0)
    plan = builder.build_serialized_network(network, options)
    if plan is None:
        raise Skip(f"the library builds no engine of the network alone: {log.take_lines()}")
    return bytes(plan)
