"""Weights into a weight-stripped engine: the part of `edgerpn build --refit` that runs in the child process.

Needs a GPU, for only a deserialized engine can be refitted; not run by the tests. After TensorRT's documentation of
refitting (Refitter, OnnxParserRefitter, ISerializationConfig), which is the same for TensorRT 10.3 to 11 and RTX.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgerpn.errors import BuildError
from edgerpn.export.engine.layer_report import inspect_layers


def refit_engine(
    trt: Any, logger: Any, send: Callable[..., None], *, stripped_file: str, onnx_file: str, plan_file: str
) -> None:
    """Writes a full engine from a stripped one and the ONNX file that it was built from; sends `built` and `layers`.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        logger: One of its loggers.
        send: Sends an event to the parent.
        stripped_file: The engine without weights.
        onnx_file: The ONNX file with them.
        plan_file: File to write.

    Raises:
        BuildError: The engine does not load here, or not every weight found its place.
        OSError: The plan cannot be written.
    """
    started_s = time.monotonic()
    send("progress", phase="loading the stripped engine", share=0.0)
    engine = trt.Runtime(logger).deserialize_cuda_engine(Path(stripped_file).read_bytes())
    if engine is None:
        raise BuildError(
            f"{stripped_file}: the library cannot load this engine here; weights go in on a GPU that it runs on"
        )
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    send("progress", phase="reading the weights", share=0.3)
    if not parser.refit_from_file(onnx_file):
        problems = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
        raise BuildError(
            f"{onnx_file}: its weights do not fit {stripped_file}: {problems or 'the library does not say why'}"
        )
    missing = list(refitter.get_missing_weights())
    if missing or not refitter.refit_cuda_engine():
        names = ", ".join(missing[:5]) or "none by name"
        raise BuildError(f"{stripped_file}: weights are missing after refitting from {onnx_file}: {names}")
    send("progress", phase="writing the engine", share=0.8)
    options = engine.create_serialization_config()
    options.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    plan = engine.serialize_with_config(options)
    if plan is None:
        raise BuildError("the library gave no engine")
    Path(plan_file).write_bytes(plan)
    send("built", num_bytes=plan.nbytes, build_s=round(time.monotonic() - started_s, 3), batch=None, peak_mib=None)
    send("layers", **inspect_layers(trt, logger, plan, batch=1, is_timed=False))
