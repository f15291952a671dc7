"""Costs of a small graph: counted from its shapes, in TensorRT-RTX's builder, and on a GPU when there is one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from torch import Tensor, nn

FREE = {"Reshape", "Unsqueeze", "Squeeze", "Identity", "Shape", "Constant", "Expand", "Flatten"}
"""Nodes that move no data."""
STEPS = {"MatMul", "Gemm", "ReduceMax", "ReduceMin", "TopK", "GatherElements", "Gather", "GatherND", "Concat", "Pad"}
"""Nodes that start a kernel of their own; all others work element by element and can be fused."""


@dataclass
class Row:
    """Figures of one form."""

    form: str
    nodes: int = 0
    steps: int = 0
    megaops: float = 0.0
    megabytes: float = 0.0
    ort_ms: dict[str, float] = field(default_factory=dict)
    rtx_build_s: float | None = None
    rtx_kilobytes: float | None = None
    cuda_ms: dict[str, float] = field(default_factory=dict)
    is_exact: bool = False


def count(proto: onnx.ModelProto, row: Row) -> None:
    """Fills in nodes, steps, operations and bytes."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    sizes: dict[str, tuple[int, int]] = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        kind = value.type.tensor_type
        elements = int(np.prod([dim.dim_value for dim in kind.shape.dim], dtype=np.int64))
        sizes[value.name] = elements, elements * onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    steps = 0
    fused: set[str] = set()
    num_bytes = operations = 0
    for node in graph.node:
        is_step = node.op_type in STEPS
        steps += is_step
        outputs = sum(sizes.get(name, (0, 0))[0] for name in node.output)
        if node.op_type == "MatMul":
            # One row times a matrix: a product and an addition for each of its elements.
            operations += 2 * max(sizes.get(name, (0, 0))[0] for name in node.input)
        elif node.op_type not in FREE:
            operations += max(outputs, *(sizes.get(name, (0, 0))[0] for name in node.input))
        if is_step:
            # What a fused group hands to this step is written once, and read by every step that takes it.
            written = [name for name in node.input if name in fused]
            fused.difference_update(written)
            num_bytes += sum(sizes.get(name, (0, 0))[1] for name in (*node.input, *node.output, *written))
        else:
            fused.update(node.output)
    row.nodes, row.steps = len(graph.node), steps
    row.megaops, row.megabytes = operations / 1e6, num_bytes / 1e6


def build_rtx(proto: onnx.ModelProto, row: Row) -> None:
    """Fills in seconds and size of the engine."""
    import tensorrt_rtx as trt

    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse(proto.SerializeToString()):
        return
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is not None:
        row.rtx_build_s, row.rtx_kilobytes = time.perf_counter() - start, plan.nbytes / 1e3


def cuda_graph_ms(module: nn.Module, example: Tensor, rounds: int) -> float:
    """Median milliseconds of a replayed CUDA graph of the module in PyTorch."""
    module, example = module.cuda(), example.cuda()
    stream = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(3):
            module(example)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        module(example)
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    module.cpu()
    return float(np.median(times))
