"""Our detector in PyTorch: as the runner's program, as CUDA graphs of its parts, and compiled.

Weights and settings come from a bundle (bundle.py), so that PyTorch is the only package that these stages need.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.launches import count_launches
from benchmarks.gpu.models import load_frames
from benchmarks.gpu.places import Place, open_place
from benchmarks.gpu.runner import Listener
from benchmarks.gpu.session import Notes, Skip
from benchmarks.gpu.shim import shim_library, write_engine
from benchmarks.gpu.timing import in_turns, wall_ms
from edgerpn import golden, settings
from edgerpn.golden import Golden
from edgerpn.proposals import Outputs
from edgerpn.runtime.backends.contract import EngineConfig
from edgerpn.runtime.backends.tensorrt.backend import TensorRtBackend

Run = Callable[[], object]


def load_detector(models: Path) -> Any:
    """Returns the network of a bundle with folded batch norms and the portable NMS, on the CPU."""
    import torch

    from edgerpn.train.network.detector import Detector
    from edgerpn.train.network.layers import fuse_batch_norm
    from edgerpn.train.network.model import ModelConfig, Rpn
    from edgerpn.train.network.proposal_stage import ProposalConfig

    content = json.loads((models / "detector.json").read_text(encoding="utf-8"))
    model = Rpn(settings.from_dict(ModelConfig, content["model"], source="detector.json")).eval()
    fuse_batch_norm(model)
    model.fold_std()
    weights = torch.load(models / "detector.pt", weights_only=True)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    proposals = settings.from_dict(ProposalConfig, content["proposals"], source="detector.json")
    return Detector(model, proposals, network_hw=tuple(content["network_hw"]), nms="portable").eval()


def expected(models: Path, name: str) -> Golden:
    """Frames of a bundle, and the proposals of a model for them."""
    with np.load(models / f"expected-{name}.npz") as outputs:
        return Golden(
            frames=load_frames(models / "frames.npz"), **{key: outputs[key] for key in ("boxes", "scores", "count")}
        )


def detector(request: dict[str, Any], notes: Notes) -> None:
    """The detector in the runner, recorded by its thread-local capture: the graph form can be captured."""
    place, work, models = open_place(request), Path(request["work"]), Path(request["models"])
    _use_float32()
    wanted, module = expected(models, "detector"), load_detector(models).to(place.torch_device)
    described = write_engine(
        work / "detector.engine", frame_hw=module.network_hw, num_proposals=module.proposals.num_proposals,
        profile=(1, 1, 1), capability=place.device.info.compute_capability,
    )  # fmt: skip
    program, listener = place.detector_program(described, module), Listener()
    start = time.perf_counter()
    backend = TensorRtBackend(
        work / "detector.engine", library=shim_library(program, described), device=place.device,
        config=EngineConfig(num_slots=1),
    )  # fmt: skip
    notes(load_s=round(time.perf_counter() - start, 2), cuda_graph=listener.graph())
    if listener.graph() != "works":
        notes.broken(listener.graph())
    for turn in ("first", "second"):
        parts = [backend.infer(frame[None]) for frame in wanted.frames]
        golden.compare(wanted, Outputs.join(parts), described, where=f"the detector in the runner, {turn} turn")
    notes(proposals=f"{int(wanted.count.sum())} of {len(wanted.frames)} frames as on the CPU, twice")

    def once() -> float:
        with backend.acquire() as slot, place.device.active():
            elapsed = place.device.time_ms(lambda: slot.submit(1), slot.stream)
            slot.result()
            return elapsed

    notes(latency_ms=in_turns({"upload, detector and download as one graph": once}, request["seconds"]))
    backend.close()


def nms(request: dict[str, Any], notes: Notes) -> None:
    """Times of the network, the proposal stage and the NMS alone, each as a CUDA graph, and their kernels."""
    import torch

    place, models = open_place(request), Path(request["models"])
    _use_float32()
    frames = torch.from_numpy(expected(models, "detector").frames[:1]).to(place.torch_device)
    module = load_detector(models).to(place.torch_device).to(memory_format=torch.channels_last)
    latency: dict[str, Any] = {}
    for precision in ("fp32", "fp16"):  # the second changes the weights
        with torch.inference_mode():
            parts = _parts(module, frames, place.torch_device, is_half=precision == "fp16")
            runs = {f"{name}, {precision}": _recorded(place, run) for name, run in parts.items()}
            latency |= in_turns(runs, request["seconds"])
            kernels = {name: _count(place, run) for name, run in parts.items()}
        times = {name: latency[f"{name}, {precision}"]["p50"] for name in parts}
        figures = {
            f"share of the proposal stage, {precision}": round(1 - times["network"] / times["whole"], 4),
            f"share of the NMS, {precision}": round(times["NMS"] / times["whole"], 4),
            f"launches, {precision}": kernels,
        }
        notes(latency_ms=latency, **figures)


def _parts(module: Any, frames: Any, device: str, *, is_half: bool) -> dict[str, Run]:
    """Functions of the whole, of the network, of the stage after it, and of the NMS in it, on fixed inputs."""
    import torch

    from edgerpn.train.network.nms import nms_fixed
    from edgerpn.train.network.proposal_stage import nms_groups, select_proposals

    kind = torch.float16 if device == "cuda" else torch.bfloat16
    if is_half:  # else autocast would convert the weights in every run
        for part in module.modules():
            if isinstance(part, torch.nn.Conv2d):
                part.to(kind)

    def half() -> Any:
        return torch.autocast(device, dtype=kind, enabled=is_half)

    with half():
        levels = module.network_levels(frames)
    anchors = [module.get_buffer(f"anchors_{level}") for level in range(module.num_levels)]
    config, content_hw = module.proposals, module.content_hw
    groups = nms_groups(levels, anchors, content_hw=content_hw, config=config, nms="portable")

    def network() -> object:
        with half():
            return module.network_levels(frames)

    def whole() -> object:
        with half():
            found = module.network_levels(frames)
        return select_proposals(found, anchors, content_hw=content_hw, config=config, nms="portable")

    def suppress() -> object:
        return [
            nms_fixed(
                group.boxes, group.scores >= 0, iou_threshold=config.nms_iou, iterations=config.nms_iterations,
                labels_NB=group.levels,
            )
            for group in groups
        ]  # fmt: skip

    return {
        "whole": whole,
        "network": network,
        "proposal stage": lambda: select_proposals(
            levels, anchors, content_hw=content_hw, config=config, nms="portable"
        ),
        "NMS": suppress,
    }


def _recorded(place: Place, run: Run) -> Callable[[], float]:
    """Records a function as a CUDA graph; returns a function that runs it and returns its milliseconds."""
    if place.torch_device == "cpu":
        return lambda: wall_ms(run)
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed(keep: object = output) -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return timed


def _count(place: Place, run: Run) -> dict[str, int] | str:
    if place.torch_device == "cpu":
        return "not counted: there is no driver"
    import torch

    with place.device.active():
        stream = place.device.create_stream()
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            for _ in range(3):  # fill PyTorch's memory pool of the stream
                run()
            place.device.synchronize(stream)
            return count_launches(stream, run)


def _use_float32() -> None:
    """Turns TF32 off, with which a GPU rounds products of float32 to 10 bits."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def pytorch(request: dict[str, Any], notes: Notes) -> None:
    """The detector in PyTorch, from frames on the GPU to proposals on the host; eager or compiled to CUDA graphs."""
    import torch

    device = "cpu" if request.get("rehearse") else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise Skip("PyTorch sees no GPU")
    if device == "cpu" and request["mode"] == "compiled":
        raise Skip("a rehearsal compiles nothing")
    notes(torch=str(torch.__version__), cuda=torch.version.cuda)
    torch.backends.cudnn.benchmark = True
    _use_float32()
    models = Path(request["models"])
    if "checkpoint" in request and not (models / "detector.json").is_file():
        from benchmarks.gpu.bundle import exported_detector, write_module

        write_module(models, exported_detector(request["checkpoint"], Path(request["onnx"])))
    module = load_detector(models).to(device).to(memory_format=torch.channels_last)
    frames = torch.from_numpy(load_frames(request["frames"])[:1]).to(device)
    kind = torch.float16 if device == "cuda" else torch.bfloat16
    call: Callable[[Any], Any] = module
    start = time.perf_counter()
    with torch.inference_mode(), torch.autocast(device, dtype=kind, enabled=request["precision"] == "fp16"):
        if request["mode"] == "compiled":
            call = torch.compile(module, mode="reduce-overhead", fullgraph=False)
        for _ in range(3):
            call(frames)
        if device == "cuda":
            torch.cuda.synchronize()
        notes(ready_s=round(time.perf_counter() - start, 2))

        def run() -> None:
            for part in call(frames)[:3]:
                part.cpu()

        label = f"PyTorch {request['mode']} {request['precision']}, batch 1"
        notes(latency_ms=in_turns({label: lambda: wall_ms(run)}, request["seconds"]))
    if device == "cuda":
        notes(gpu_mib=round(torch.cuda.max_memory_allocated() / 2**20, 1))
