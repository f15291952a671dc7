"""Compares forms of portable NMS: the cost of each, and whether it is exact.

    python -m benchmarks.nms [--checkpoint best.pt --images DIR] [--pre-nms 1000] [--candidates 512] [--out FILE]

Every form (forms.py) is a small graph, exported as the detector is, from sorted boxes to a mask. "Candidates" is
`nms_fixed` on the best so many boxes of all levels; the last rows are the whole proposal stage, from logits and deltas.
All get the same images and are compared with greedy NMS. A table shows, for one image:

    nodes   nodes of the ONNX graph
    steps   products, reductions, top-k and copies: a GPU runs them one after the other even if it fuses
            everything that works element by element into its neighbours
    Mop     operations, millions
    MB      millions of bytes that those steps read and write, and that fused operations write for them (a compiler
            that joins a reduction with the operations before it moves less)
    1t, 2t  milliseconds in ONNX Runtime on the CPU with one and two threads: the tenth percentile of alternating
            rounds, which other programs on the machine disturb least
    build   seconds and kilobytes of the engine from TensorRT-RTX, which builds without a GPU
    CUDA    milliseconds on a GPU, in PyTorch (a CUDA graph) and in ONNX Runtime, where they find one

Without a checkpoint the boxes are random. `--out` writes FILE.md and FILE.json, which also name the
measurements that this machine does not support. Exit status 1 when a form is not exact.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from benchmarks.inference import make_session, take_turns
from benchmarks.nms.forms import IOU, OneList, level_forms, stages
from edgerpn import files
from edgerpn.export.onnx.graph import export_program
from edgerpn.export.onnx.nms_chain import measure_chain
from edgerpn.train.network.anchors import AnchorConfig, grid_anchors
from edgerpn.train.network.nms import nms_greedy
from edgerpn.train.network.proposal_stage import ProposalConfig, nms_groups, ranked_candidates, select_proposals

HW = (384, 384)
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
            # A fused group writes its result once, and every step that needs it reads it.
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


@dataclass
class Case:
    """A form, its inputs (one for each image) and its expected results."""

    module: nn.Module
    inputs: list[Tensor]
    expected: list[Tensor]


def levels_of(arguments: argparse.Namespace) -> tuple[list[list[tuple[Tensor, Tensor]]], list[Tensor], str]:
    """Returns logits and deltas of every image and level, the anchors, and their origin."""
    if arguments.checkpoint is None:
        anchors = grid_anchors(AnchorConfig(), HW)
        return [_random_levels(anchors, seed) for seed in range(8)], anchors, "random"
    import cv2

    from edgerpn.letterbox import letterbox
    from edgerpn.train.checkpoint import load_model
    from edgerpn.train.data.coco import read_image
    from edgerpn.train.network.detector import Detector

    model, checkpoint = load_model(arguments.checkpoint)
    detector = Detector(model, checkpoint.settings.proposals, network_hw=HW).eval()
    frames = []
    for file in sorted(arguments.images.iterdir())[:32]:
        frame = read_image(file)
        frames.append(letterbox((frame.shape[0], frame.shape[1]), HW).apply(frame, cv2.resize)[None])
    print(measure_chain(detector, frames).summary())
    with torch.inference_mode():
        levels = [model(model.normalize(torch.from_numpy(frame))) for frame in frames]
    return levels, grid_anchors(checkpoint.settings.model.anchors, HW), f"{len(frames)} photographs"


def _random_levels(anchors: list[Tensor], seed: int) -> list[tuple[Tensor, Tensor]]:
    """Random logits and small random deltas."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(1, len(level), generator=generator),
            0.3 * torch.randn(1, len(level), 4, generator=generator),
        )
        for level in anchors
    ]


def make_cases(
    images: list[list[tuple[Tensor, Tensor]]], anchors: list[Tensor], config: ProposalConfig, candidates: int
) -> dict[str, Case]:
    """Every form with its inputs, and greedy NMS of them."""
    levels, cut, raw, boxes = [], [], [], []
    for image in images:
        groups = nms_groups(image, anchors, content_hw=HW, config=config, nms="standard")
        own = [torch.full_like(group.scores, number) for number, group in enumerate(groups)]
        levels.append(
            torch.cat(
                [torch.cat((g.boxes, g.scores[..., None], n[..., None]), -1) for g, n in zip(groups, own, strict=True)],
                dim=1,
            )
        )
        best = ranked_candidates(image, anchors, candidates, content_hw=HW, config=config)
        assert best.levels is not None  # there are several levels here
        cut.append(torch.cat((best.boxes, best.scores[..., None], best.levels[..., None]), dim=-1))
        raw.append(torch.cat([torch.cat((logits[..., None], deltas), dim=-1) for logits, deltas in image], dim=1))
        boxes.append(select_proposals(image, anchors, content_hw=HW, config=config).boxes)
    sizes = [min(config.pre_nms, len(level)) for level in anchors]
    masks, cut_masks = ([_greedy(rows) for rows in data] for data in (levels, cut))
    cases = {name: Case(form, levels, masks) for name, form in level_forms(sizes, config.nms_iterations).items()}
    cases[f"{candidates} candidates, level mask"] = Case(OneList(sizes, config.nms_iterations), cut, cut_masks)
    for name, stage in stages(anchors, HW, config, candidates).items():
        cases[name] = Case(stage, raw, boxes)
    return cases


def _greedy(rows: Tensor) -> Tensor:
    """Mask (1, B) of greedy NMS within the levels of (1, B, 6) boxes, scores and levels."""
    mask = torch.zeros(1, rows.shape[1])
    for level in rows[0, :, 5].unique():
        own = rows[0, :, 5] == level
        mask[0, own] = nms_greedy(rows[0, own, :4], rows[0, own, 4] >= 0, iou_threshold=IOU).float()
    return mask


def run_once(session: onnxruntime.InferenceSession, feeds: list[dict[str, np.ndarray]], turn: int) -> object:
    """Runs a graph on one image of the cycle."""
    return session.run(None, feeds[turn % len(feeds)])


def prepare(cases: dict[str, Case]) -> tuple[dict[str, Row], dict[tuple[str, str], Callable[[int], object]]]:
    """Exports, counts, checks and builds every form; returns the figures so far, and the calls to time."""
    rows: dict[str, Row] = {}
    runs: dict[tuple[str, str], Callable[[int], object]] = {}
    providers = {"1t": (1, "CPUExecutionProvider"), "2t": (2, "CPUExecutionProvider")}
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers["CUDA"] = (1, "CUDAExecutionProvider")
    for name, case in cases.items():
        row = rows[name] = Row(form=name)
        proto = export_program(case.module.eval(), case.inputs[0], opset=18)
        count(proto, row)
        feeds = [{proto.graph.input[0].name: tensor.numpy()} for tensor in case.inputs]
        opened = {
            label: make_session(proto.SerializeToString(), threads=threads, provider=provider)
            for label, (threads, provider) in providers.items()
        }
        row.is_exact = all(
            np.allclose(one.run(None, feed)[0], expected, rtol=0, atol=0.01)
            for one in opened.values()
            for feed, expected in zip(feeds, case.expected, strict=True)
        )
        for label, one in opened.items():
            runs[name, label] = functools.partial(run_once, one, feeds)
        if find_spec("tensorrt_rtx"):
            build_rtx(proto, row)
        if torch.cuda.is_available():
            row.cuda_ms["PyTorch"] = cuda_graph_ms(case.module, case.inputs[0], 50)
        print(f"prepared: {name}", file=sys.stderr)
    return rows, runs


def skipped() -> list[str]:
    """Measurements that this machine does not support."""
    missing = [] if find_spec("tensorrt_rtx") else ["TensorRT-RTX: not installed"]
    missing += [] if torch.cuda.is_available() else ["CUDA in PyTorch: it sees no GPU"]
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return missing if has_cuda else [*missing, "CUDA in ONNX Runtime: it has no CUDA provider here"]


def table(rows: list[Row]) -> str:
    """Returns the figures as a Markdown table."""
    cuda = sorted({key for row in rows for key in row.cuda_ms})
    head = ["form", "exact", "nodes", "steps", "Mop", "MB", "1t ms", "2t ms", "build s", "engine kB"]
    lines = [head + [f"CUDA ms ({key})" for key in cuda], ["---"] + ["---:"] * (len(head) - 1 + len(cuda))]
    for row in rows:
        built = [] if row.rtx_build_s is None else [f"{row.rtx_build_s:.2f}", f"{row.rtx_kilobytes:.0f}"]
        figures = [row.nodes, row.steps, f"{row.megaops:.1f}", f"{row.megabytes:.1f}"]
        times = [f"{row.ort_ms[key]:.2f}" for key in ("1t", "2t")]
        lines.append(
            [row.form, "yes" if row.is_exact else "NO", *map(str, figures), *times, *(built or ["-", "-"])]
            + [f"{row.cuda_ms[key]:.3f}" for key in cuda]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Measures, prints the table, writes the results; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="checkpoint of a training run (default: random boxes)")
    parser.add_argument("--images", type=Path, help="folder of photographs, with --checkpoint; 32 are used")
    parser.add_argument("--pre-nms", type=int, default=1000, help="boxes of each level, default 1000")
    parser.add_argument("--candidates", type=int, default=512, help="boxes of all levels, default 512")
    parser.add_argument("--iterations", type=int, default=15, help="rounds, default 15")
    parser.add_argument("--rounds", type=int, default=40, help="times that every form is run, default 40")
    parser.add_argument("--out", type=Path, help="results without suffix; writes OUT.md and OUT.json")
    arguments = parser.parse_args()
    images, anchors, source = levels_of(arguments)
    config = ProposalConfig(
        pre_nms=arguments.pre_nms, nms_iterations=arguments.iterations, nms_iou=IOU, soft_nms_iou=1.0
    )
    rows, runs = prepare(make_cases(images, anchors, config, arguments.candidates))
    for (name, label), times in take_turns(runs, arguments.rounds, warm_up=2).items():
        value = float(np.percentile(times, 10))
        if label == "CUDA":
            rows[name].cuda_ms["ONNX Runtime"] = value
        else:
            rows[name].ort_ms[label] = value
    about = {
        "boxes": source,
        "level_sizes": [min(arguments.pre_nms, len(level)) for level in anchors],
        "iterations": arguments.iterations,
        "candidates": arguments.candidates,
        "skipped": skipped(),
        "cores": os.cpu_count(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "machine": platform.machine(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": {"onnxruntime": onnxruntime.__version__, "torch": str(torch.__version__)},
    }
    text = "\n".join([f"{key}: {value}  " for key, value in about.items()] + ["", table(list(rows.values())), ""])
    print(text)
    if arguments.out:
        files.write_text(arguments.out.with_suffix(".md"), f"# Forms of portable NMS\n\n{text}")
        content = {**about, "forms": [asdict(row) for row in rows.values()]}
        files.write_text(arguments.out.with_suffix(".json"), json.dumps(content, indent=2) + "\n")
    return 0 if all(row.is_exact for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
