"""Share of pre-processing and of the proposal stage in the whole graph, in ONNX Runtime on the CPU.

    python -m benchmarks.graph [--checkpoint best.pt] [--size 384x640] [--features] [--classes P] [--peer peer.onnx]
        [--out out.json]

Three graphs are exported from the same network and run alternately on the same frames: the backbone,
neck and head alone; with pre-processing in front; and the whole. The limits of the project: pre-processing at most
10 % of the whole, everything after the head (top-k, decode, NMS) at most 10 %. Exit status 1 when a limit is broken.
Without a checkpoint the network has random weights and nearly equal scores: the worst case for the NMS.

`--features` adds the whole with embeddings, and with RoI features of 7 x 7 cells in both forms, and prints the time of
each as a ratio to the whole. `--classes P` does the same for the whole with a second stage of random weights and P
classes, in both forms; for ONNX Runtime it may take at most 1.3 times the time of the whole.

`--peer` is the graph that `benchmarks.graph.peer` writes, torchvision's RPN on a mobilenet_v3_large. It runs
alternately with the others, and the whole may take at most 0.4 of its time.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from benchmarks.inference import make_session
from edgerpn import files
from edgerpn.export.export_config import ExportConfig
from edgerpn.export.onnx.graph import export_module, export_program
from edgerpn.export.onnx.nms_chain import measure_candidates, with_margin
from edgerpn.letterbox import parse_hw
from edgerpn.train.checkpoint import load_model
from edgerpn.train.config import load_settings
from edgerpn.train.network.detector import Detector
from edgerpn.train.network.model import Rpn
from edgerpn.train.network.proposal_stage import ProposalConfig
from edgerpn.train.network.region_head import RegionHead

LIMIT = 0.10
PEER, PEER_LIMIT = "torchvision", 0.4
FEATURES: dict[str, dict[str, Any]] = {
    "with embeddings": {"embeddings": True},
    "with RoiAlign": {"roi_hw": (7, 7), "roi_form": "operator"},
    "with GridSample": {"roi_hw": (7, 7), "roi_form": "grid"},
}
"""Graphs of `--features`, and what makes them of the whole."""
CLASSES: dict[str, dict[str, Any]] = {
    "with classes": {"roi_form": "operator"},
    "with classes, GridSample": {"roi_form": "grid", "nms": "portable"},
}
"""Graphs of `--classes`, and what makes them of the whole with a second stage."""
CLASSES_LIMIT = 1.3


class Network(nn.Module):
    """Backbone, neck and head, from normalised images."""

    def __init__(self, model: Rpn) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) to logits and deltas of every level."""
        return tuple(tensor for level in self.model(images) for tensor in level)


class WithPreprocessing(Network):
    """The same, from uint8 frames."""

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """(N, H, W, 3) to logits and deltas of every level."""
        return super().forward(self.model.normalize(frames))


def make_graphs(
    checkpoint: Path | None,
    hw: tuple[int, int],
    folder: Path,
    peer: Path | None,
    *,
    has_features: bool,
    num_classes: int | None,
) -> dict[str, onnxruntime.InferenceSession]:
    """The graphs and the peer's, each in a session of its own with ONNX Runtime's default threads."""
    torch.manual_seed(0)
    model = load_model(checkpoint)[0] if checkpoint else Rpn(load_settings().model).eval()
    config = ExportConfig(network_hw=hw, batch=1)
    detector: Detector = export_module(model, ProposalConfig(num_proposals=100, pre_nms=1000), config, hw)
    # As many candidates as an export would choose with these frames.
    count = with_margin(max(measure_candidates(detector, frames_of(hw))), detector.proposals)
    detector.proposals = dataclasses.replace(detector.proposals, nms_candidates=count)
    frames = torch.zeros((1, *hw, 3), dtype=torch.uint8)
    parts: dict[str, tuple[nn.Module, Tensor]] = {
        "network": (Network(detector.model), detector.model.normalize(frames)),
        "with pre-processing": (WithPreprocessing(detector.model), frames),
        "whole": (detector, frames),
    }
    for name, changes in FEATURES.items() if has_features else ():
        parts[name] = (copy.copy(detector), frames)
        vars(parts[name][0]).update(changes)
    for name, changes in CLASSES.items() if num_classes else ():
        classed = copy.deepcopy(detector)
        width = detector.model.config.region_channels
        classed.model.region_head = RegionHead(detector.model.map_channels, num_classes or 0, width=width)
        vars(classed).update(changes)
        parts[name] = (classed, frames)
    graphs = {}
    for name, (module, example) in parts.items():
        graphs[name] = folder / f"{name.replace(' ', '-').replace(',', '')}.onnx"
        onnx.save(export_program(module.eval(), example, opset=config.opset), graphs[name])
    if peer is not None:
        graphs[PEER] = peer
    return {name: make_session(file) for name, file in graphs.items()}


def frames_of(hw: tuple[int, int], count: int = 8) -> list[np.ndarray]:
    """Smooth coloured noise, (1, H, W, 3) uint8, a little like a photograph."""
    import cv2

    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (hw[0] // 16, hw[1] // 16, 3), np.uint8) for _ in range(count)]
    return [cv2.resize(image, (hw[1], hw[0]), interpolation=cv2.INTER_CUBIC)[None] for image in noise]


def measure(
    sessions: dict[str, onnxruntime.InferenceSession], hw: tuple[int, int], rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of every graph in every round; the graphs alternate, so that drift affects all of them."""
    frames = frames_of(hw)
    mean, std = (np.array(v, np.float32) for v in ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395)))
    images = [np.ascontiguousarray(((f - mean) / std).transpose(0, 3, 1, 2), np.float32) for f in frames]
    elapsed: dict[str, list[float]] = {name: [] for name in sessions}
    for round_number in range(-3, rounds):  # three rounds to warm up
        for name, session in sessions.items():
            inputs, key = (images if name in ("network", PEER) else frames), session.get_inputs()[0].name
            times = []
            for i in range(10):
                start = time.perf_counter()
                session.run(None, {key: inputs[i % len(inputs)]})
                times.append(1000 * (time.perf_counter() - start))
            if round_number >= 0:
                elapsed[name].append(float(np.median(times)))
    return elapsed


def main() -> int:
    """Measures, prints a table, writes the result; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="checkpoint of a training run (default: random weights)")
    parser.add_argument("--size", type=parse_hw, default=(384, 640), help="network size, default 384x640")
    parser.add_argument("--features", action="store_true", help="measure graphs with features of each proposal too")
    parser.add_argument("--classes", type=int, metavar="P", help="measure graphs with P classes too")
    parser.add_argument("--peer", type=Path, help="graph of `benchmarks.graph.peer`, for the same size")
    parser.add_argument("--rounds", type=int, default=25, help="rounds of 10 runs of each graph, default 25")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sessions = make_graphs(
            arguments.checkpoint,
            arguments.size,
            Path(folder),
            arguments.peer,
            has_features=arguments.features,
            num_classes=arguments.classes,
        )
        elapsed = measure(sessions, arguments.size, arguments.rounds)
    network, middle, whole = (np.array(elapsed[name]) for name in ("network", "with pre-processing", "whole"))
    shares = {
        "pre-processing": (middle - network) / whole,
        "after the head": (whole - middle) / whole,
    }
    height, width = arguments.size
    print(f"{height}x{width}, ONNX Runtime {onnxruntime.__version__}, {os.cpu_count()} cores")
    for name, values in elapsed.items():
        print(f"  {name:<20} {np.median(values):7.2f} ms (min {min(values):.2f}, max {max(values):.2f})")
    is_good = True
    for name, values in shares.items():
        median = float(np.median(values))
        is_good &= median <= LIMIT
        print(f"  {name:<20} {median:7.1%} of the whole (limit {LIMIT:.0%}) {'ok' if median <= LIMIT else 'TOO MUCH'}")
    further = [name for name in (*FEATURES, *CLASSES) if name in elapsed]
    ratios = {name: float(np.median(np.array(elapsed[name]) / whole)) for name in further}
    for name, value in ratios.items():
        print(f"  {name:<20} {value:7.3f} of the whole's time")
    is_good &= ratios.get("with classes", 0.0) <= CLASSES_LIMIT
    ratio = float(np.median(whole / np.array(elapsed[PEER]))) if arguments.peer else None
    if ratio is not None:
        is_good &= ratio <= PEER_LIMIT
        verdict = "ok" if ratio <= PEER_LIMIT else "TOO SLOW"
        print(f"  {'whole over ' + PEER:<20} {ratio:7.2f} (limit {PEER_LIMIT}) {verdict}")
    if arguments.out:
        result = {
            "size_hw": arguments.size,
            "weights": "checkpoint" if arguments.checkpoint else "random",
            "median_ms": {name: float(np.median(values)) for name, values in elapsed.items()},
            "share": {name: float(np.median(values)) for name, values in shares.items()},
            "limit": LIMIT,
            "over_whole": ratios,
            "over_peer": ratio,
            "peer_limit": PEER_LIMIT,
            "cores": os.cpu_count(),
            "versions": {"onnxruntime": onnxruntime.__version__, "torch": str(torch.__version__)},
            "machine": platform.machine(),
        }
        files.write_text(arguments.out, json.dumps(result, indent=2) + "\n")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
