"""The machine, the libraries that work on it, and the compute capabilities that TensorRT-RTX accepts."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.session import Notes, Skip, run_process
from benchmarks.machine import facts

PROBES = {
    "tensorrt": "import tensorrt; print(tensorrt.__version__)",
    "tensorrt_rtx": "import tensorrt_rtx; print(tensorrt_rtx.__version__)",
    "tensorrt_lean": "import tensorrt_lean; print(tensorrt_lean.__version__)",
    "torch": "import torch as t; print(t.__version__, 'CUDA', t.version.cuda, 'sees GPU', t.cuda.is_available())",
    "onnxruntime": "import onnxruntime as o; print(o.__version__, ', '.join(o.get_available_providers()))",
    "cuda.bindings": "import cuda.bindings.driver, cuda.bindings as c; print(c.__version__)",
    "pycuda": "import pycuda.driver, pycuda; print(pycuda.VERSION_TEXT)",
    "cv2": "import cv2; print(cv2.__version__)",
}
"""Modules, and code that prints their versions; each runs in a process of its own, because an import can end one."""

SMI_FIELDS = (
    "driver_version", "memory.total", "power.limit", "power.max_limit", "clocks.sm", "clocks.max.sm", "clocks.mem",
    "clocks_throttle_reasons.active", "temperature.gpu", "persistence_mode", "compute_mode", "mig.mode.current",
)  # fmt: skip
_TOOL_S = 20.0
_IMPORT_S = 60.0


def hardware(request: dict[str, Any], notes: Notes) -> None:
    """GPU, driver, clocks and power, computer, Jetson's modes, and versions."""
    from edgerpn.export.engine.libraries import query_build_machine

    machine = query_build_machine()
    notes(**{**dataclasses.asdict(machine), "cuda_driver": machine.driver})
    computer = facts("edgerpn", "numpy", "onnx", "onnxscript", "cuda-bindings")
    notes(packages=computer.pop("versions"), **computer)
    notes(nvidia_smi=_nvidia_smi(), gpu_memory_mib=_gpu_memory_mib())
    if machine.l4t is not None:
        notes(nvpmodel=_lines(["nvpmodel", "-q"]), jetson_clocks=_lines(["jetson_clocks", "--show"]))
    found = {name: _probe(code) for name, code in PROBES.items()}
    notes(modules={name: text for name, (text, _) in found.items()})
    notes(working=[name for name, (_, works) in found.items() if works])


def clocks(request: dict[str, Any], notes: Notes) -> None:
    """Clocks, power and throttling after the work; they show whether the GPU held its speed."""
    facts = _nvidia_smi()
    if not facts:
        raise Skip("there is no nvidia-smi")
    notes(nvidia_smi=facts)


def _gpu_memory_mib() -> int | None:
    from edgerpn.errors import EdgeRpnError
    from edgerpn.runtime.backends.tensorrt.cuda_provider import open_device

    try:
        return open_device().info.memory_bytes >> 20
    except EdgeRpnError:
        return None


def _nvidia_smi() -> dict[str, str]:
    """Fields that this version of nvidia-smi knows; each is queried alone, because one unknown name fails all."""
    if shutil.which("nvidia-smi") is None:
        return {}
    facts = {}
    for field in SMI_FIELDS:
        lines = _lines(["nvidia-smi", "--id=0", f"--query-gpu={field}", "--format=csv,noheader"])
        if lines and "not a valid field" not in lines[0].lower():
            facts[field] = lines[0]
    return facts


def _lines(words: list[str]) -> list[str]:
    """Lines that a tool of the system prints; it may be missing, or refuse without root."""
    try:
        status, lines = run_process(words, _TOOL_S, dict(os.environ))
    except OSError as error:
        return [f"{words[0]}: {error}"]
    return [f"{words[0]}: no answer within {_TOOL_S:g} s"] if status is None else [line.strip() for line in lines]


def _probe(code: str) -> tuple[str, bool]:
    """Returns the version of a module, or why it does not import, and whether it imports."""
    status, lines = run_process([sys.executable, "-c", code], _IMPORT_S, dict(os.environ))
    if status is None:
        return f"its import did not end within {_IMPORT_S:g} s", False
    text = lines[-1].strip() if lines else f"ended with {status}"
    return text.removeprefix("ModuleNotFoundError: "), status == 0


def acceptance(request: dict[str, Any], notes: Notes) -> None:
    """Tries engines of TensorRT-RTX on this GPU, built for its default list, for this GPU, and for CURRENT."""
    from edgerpn.errors import EdgeRpnError
    from edgerpn.export.engine.libraries import load_library

    try:
        trt = load_library("tensorrt-rtx")
    except EdgeRpnError as error:
        raise Skip(str(error)) from error
    known = trt.ComputeCapability.__members__
    notes(known=[name for name in known if re.fullmatch(r"SM\d+", name)], version=trt.__version__)
    capability = request["compute_capability"]
    wanted: dict[str, Any] = {"default": None}
    if capability is not None:
        name = f"SM{capability.replace('.', '')}"
        notes(names_this_gpu=name in known)
        wanted |= {key: known[key] for key in (name, "CURRENT") if key in known}
    plans = {}
    for key, member in wanted.items():
        plan, message = _small_plan(trt, member)
        plans[key] = plan
        notes(**{f"built for {key}": f"{len(plan)} bytes" if plan is not None else f"refused: {message}"})
    if capability is None:
        notes(runs="not tried: there is no NVIDIA GPU")
        return
    answers = {key: _try(trt, plan) for key, plan in plans.items() if plan is not None}
    notes(**{f"engine for {key} on {capability}": answer for key, answer in answers.items()})
    notes(runs="accepted" if any(answer.startswith("accepted") for answer in answers.values()) else "refused")


def _small_plan(trt: Any, member: Any) -> tuple[bytes | None, str]:
    """Builds an engine of one convolution; returns it, or None, and the library's messages."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 32, 32])],
        [weight],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "small.onnx"
        onnx.save(proto, file)
        if not trt.OnnxParser(network, log).parse_from_file(os.fspath(file)):
            return None, log.take_lines()
    options = builder.create_builder_config()
    if member is not None:
        options.num_compute_capabilities = 1
        if not options.set_compute_capability(member, 0):
            return None, log.take_lines()
    plan = builder.build_serialized_network(network, options)
    return (None if plan is None else bytes(plan)), log.take_lines()


def _try(trt: Any, plan: bytes) -> str:
    """Loads an engine and makes a context, which compiles its kernels; returns the library's answer."""
    from edgerpn.runtime.backends.tensorrt.context import create_context, make_runtime_config
    from edgerpn.runtime.backends.tensorrt.cuda_provider import open_device

    log = _log(trt)
    with open_device().active():
        runtime = trt.Runtime(log)
        validity = ""
        if hasattr(runtime, "get_engine_validity"):
            validity = f" (get_engine_validity: {runtime.get_engine_validity(plan)})"
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            return f"refused: {log.take_lines()}{validity}"
        context = create_context(trt, engine, make_runtime_config(trt, engine))
        made = "its execution context too" if context is not None else f"but no execution context: {log.take_lines()}"
        return f"{'accepted' if context is not None else 'refused'}: the engine loads, {made}{validity}"


def _log(trt: Any) -> Any:
    from edgerpn.runtime.backends.tensorrt.library import logger_of

    return logger_of(trt)
