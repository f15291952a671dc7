"""Others on the same GPU with the same network and frames: PyTorch and ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gpu_child import Notes, Skip
from gpu_engine import in_turns, wall_ms


def pytorch(request: dict[str, Any], notes: Notes) -> None:
    """The detector in PyTorch, from frames on the GPU to proposals on the host; eager, as a CUDA graph or compiled."""
    import torch

    if not torch.cuda.is_available():
        raise Skip("PyTorch sees no GPU")
    notes(torch=str(torch.__version__), cuda=torch.version.cuda, gpu=torch.cuda.get_device_name())
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    detector = _detector(request).cuda().to(memory_format=torch.channels_last)
    half = torch.autocast("cuda", dtype=torch.float16, enabled=request["precision"] == "fp16")
    frames = torch.from_numpy(np.load(request["frames"])[:1]).cuda()
    call: Callable[[Any], Any] = detector
    start = time.perf_counter()
    with torch.inference_mode(), half:
        if request["mode"] == "compiled":
            call = torch.compile(detector, mode="reduce-overhead", fullgraph=False)
        for _ in range(3):
            call(frames)
        torch.cuda.synchronize()
        notes(ready_s=round(time.perf_counter() - start, 2))

        def run() -> None:
            batch = call(frames)
            for part in (batch.boxes, batch.scores, batch.count):
                part.cpu()

        label = f"PyTorch {request['mode']} {request['precision']}, batch 1"
        notes(latency_ms=in_turns({label: lambda: wall_ms(run)}, request["seconds"]))
    notes(gpu_mib=round(torch.cuda.max_memory_allocated() / 2**20, 1))


def _detector(request: dict[str, Any]) -> Any:
    """The network with its batch norms folded and the proposal stage of the exported graph."""
    import dataclasses

    from edgerpn import manifest
    from edgerpn.export.export_config import ExportConfig
    from edgerpn.export.onnx.graph import export_module, proposal_config
    from edgerpn.train.checkpoint import load_model

    model, checkpoint = load_model(request["checkpoint"])
    exported = manifest.read(request["onnx"])
    stage = exported.proposals
    config = ExportConfig(target="tensorrt", num_proposals=stage.num_proposals, pre_nms=stage.pre_nms)
    proposals = dataclasses.replace(proposal_config(checkpoint, config), nms_candidates=stage.nms_candidates)
    if stage.nms_iterations is not None:
        proposals = dataclasses.replace(proposals, nms_iterations=stage.nms_iterations)
    return export_module(model, proposals, config, exported.input.network_hw)


def onnxruntime(request: dict[str, Any], notes: Notes) -> None:
    """ONNX Runtime with one of its providers, from host frames to host proposals."""
    from edgerpn.errors import EngineLoadError
    from edgerpn.runtime.backends.onnxruntime import OnnxRuntimeBackend

    start = time.perf_counter()
    try:
        backend = OnnxRuntimeBackend(Path(request["onnx"]), providers=[request["provider"]])
    except EngineLoadError as error:
        raise Skip(str(error)) from error
    frames = np.load(request["frames"])[:1]
    backend.infer(frames)
    notes(ran_by=backend.name, ready_s=round(time.perf_counter() - start, 2))
    label = f"ONNX Runtime {request['provider']}, {request['label']}, batch 1"
    notes(latency_ms=in_turns({label: lambda: wall_ms(lambda: backend.infer(frames))}, request["seconds"]))
    backend.close()
