"""The child process of a build, with the arguments FD and PARENT.

It reads one request, a JSON object on stdin, and writes events, one JSON object a line, to the file descriptor FD. Its
stdout and stderr belong to the libraries. It ends when its parent, the process PARENT, ends.

    request  command: probe or build, and the arguments of the functions below
    events   progress: phase, share         log: severity, text
             probed: see `BuildEnvironment` built: num_bytes, build_s, batch, peak_mib
             layers: layers, num_layers     phases: seconds by name
             timing_cache: note
             failed: kind (build, dependency, memory, write), message

One code path serves TensorRT 10.3 to 11 and TensorRT-RTX: networks are always strongly typed, nothing is used that
TensorRT 11 removed, and `hasattr` asks for features of some versions. The tests run it with TensorRT-RTX; the features
of TensorRT alone (DLA, version and hardware compatibility) follow its documentation and have not run on a GPU yet.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgerpn import settings
from edgerpn.errors import BuildError, MissingDependencyError
from edgerpn.export.engine.cache import TimingCache
from edgerpn.export.engine.layers import inspect_layers
from edgerpn.export.engine.libraries import BuildEnvironment, choose, cuda_version, load_library, query_build_machine
from edgerpn.export.engine.options import DEFAULT_BATCH, BuildConfig
from edgerpn.export.engine.progress import PhaseTracker
from edgerpn.files import native_path
from edgerpn.machine import CHILD_MARK, die_with_parent

Send = Callable[..., None]
MAX_TEXT = 2000
"""Characters of one log line that are kept."""


def main() -> int:
    """Handles one request; returns the exit status."""
    os.environ.pop(CHILD_MARK, None)
    die_with_parent(int(sys.argv[2]))
    request = json.loads(sys.stdin.readline())
    send = _sender(int(sys.argv[1]))
    try:
        {"probe": _probe, "build": _build_engine}[request["command"]](request, send)
    except MissingDependencyError as error:
        send("failed", kind="dependency", message=str(error))
    except BuildError as error:
        send("failed", kind="build", message=str(error))
    except MemoryError:
        send("failed", kind="memory", message="the process ran out of memory")
    except OSError as error:
        send("failed", kind="write", message=f"{error.filename or 'the engine'}: {error.strerror or error}")
    else:
        return 0
    return 1


def _sender(descriptor: int) -> Send:
    """Returns a function that writes an event; threads may share it."""
    os.set_inheritable(descriptor, False)
    lock = threading.Lock()

    def send(event: str, **values: Any) -> None:
        data = (json.dumps({"event": event, **values}) + "\n").encode()
        with lock:
            while data:
                data = data[os.write(descriptor, data) :]

    return send


def _probe(request: dict[str, Any], send: Send) -> None:
    machine = query_build_machine()
    library, module, notes = choose(request["backend"], machine)
    environment = BuildEnvironment(
        library=library, version=module.__version__, cuda=cuda_version(library), machine=machine, notes=tuple(notes)
    )
    send("probed", **dataclasses.asdict(environment))


def _build_engine(request: dict[str, Any], send: Send) -> None:
    trt = load_library(request["library"])
    compile_engine(
        trt,
        make_logger(trt, send),
        send,
        onnx_file=request["onnx"],
        plan_file=request["plan"],
        timing_cache=request["timing_cache"],
        has_gpu=request["has_gpu"],
        config=settings.from_dict(BuildConfig, request["config"], source="request"),
    )


def make_logger(trt: Any, send: Send) -> Any:
    """Returns a logger of the library that sends all lines but verbose ones, of which there are tens of thousands."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.num_errors = 0

        def log(self, severity: Any, text: str) -> None:
            self.num_errors += severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)
            if severity.name != "VERBOSE":
                send("log", severity=severity.name.lower(), text=text[:MAX_TEXT])

    return Logger()


def compile_engine(
    trt: Any,
    logger: Any,
    send: Send,
    *,
    onnx_file: str,
    plan_file: str,
    timing_cache: str | None,
    has_gpu: bool,
    config: BuildConfig,
) -> None:
    """Builds a plan, writes it, and sends `built`; then `timing_cache`, and `layers` where a GPU can inspect it.

    The build has succeeded once `built` is sent.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        logger: One of its loggers.
        send: Sends an event to the parent.
        onnx_file: File to build from.
        plan_file: File to write.
        timing_cache: File of kernel timings to use and to add to, or None.
        has_gpu: Whether there is a GPU to inspect the engine on.
        config: Options.

    Raises:
        BuildError: The graph is not ours, this version lacks an option, or the library returns no plan.
        OSError: The plan cannot be written.
    """
    started_s = time.monotonic()
    send("progress", phase="reading the ONNX file", share=0.0)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parse(make_parser(trt, network, logger, config), onnx_file)
    check_interface(network, trt)
    options = make_options(trt, builder, config)
    batch = _add_profile(builder, network, options, config)
    cache = TimingCache(options, timing_cache)
    plan = _build(trt, builder, network, options, send)
    Path(plan_file).write_bytes(plan)
    send(
        "built",
        num_bytes=plan.nbytes,
        build_s=round(time.monotonic() - started_s, 3),
        batch=batch,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    )
    cache.save()
    send("timing_cache", note=cache.note)
    if has_gpu:
        is_portable = config.version_compatible
        found = inspect_layers(
            trt, logger, plan, batch=batch[1], is_timed=config.profile, is_version_compatible=is_portable
        )
        send("layers", **found)


def _build(trt: Any, builder: Any, network: Any, options: Any, send: Send) -> Any:
    """Builds the serialized engine, in the library's memory; sends progress and phases."""
    tracker = PhaseTracker(lambda phase, share: send("progress", phase=phase, share=round(share, 4)))
    monitor = _monitor(trt, tracker)  # must outlive the build
    options.progress_monitor = monitor
    try:
        plan = builder.build_serialized_network(network, options)
    finally:
        send("phases", seconds=tracker.seconds)
    if plan is None:
        raise BuildError("the library returned no engine")
    return plan


def make_parser(trt: Any, network: Any, logger: Any, config: BuildConfig) -> Any:
    """Returns a parser into `network`; for a DLA it rewrites layers, in versions that can (TensorRT 11)."""
    parser = trt.OnnxParser(network, logger)
    if config.dla_core is not None and hasattr(trt.OnnxParserFlag, "ADJUST_FOR_DLA"):
        parser.set_flag(trt.OnnxParserFlag.ADJUST_FOR_DLA)
    return parser


def parse(parser: Any, onnx_file: str) -> None:
    """Reads an ONNX file into the parser's network.

    Raises:
        BuildError: The parser refuses it; names the node.
    """
    with native_path(onnx_file) as native:
        if parser.parse_from_file(native):
            return
    problems = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"{error.node_operator()} {error.node_name()}: " if error.node_operator() else ""
        problems.append(f"{where}{error.desc()}")
    text = "; ".join(dict.fromkeys(problems)) or "without a reason"
    if "ParseFromCodedStream" in text:
        text = "it is not an ONNX file, or damaged; export it again, or copy it again"
    raise BuildError(f"{onnx_file}: the library's parser refuses the file: {text}")


def check_interface(network: Any, trt: Any) -> None:
    """Requires the form of every graph of ours, see `edgerpn.manifest`; the manifest of the engine has the names.

    Raises:
        BuildError: A tensor is missing, or the input has another type or shape.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index).name for index in range(network.num_outputs)]
    is_ours = len(inputs) == 1 and inputs[0].dtype == trt.DataType.UINT8 and len(inputs[0].shape) == 4
    if not is_ours or len(outputs) < 3:
        found = ", ".join(f"{tensor.name} {tuple(tensor.shape)}" for tensor in inputs)
        raise BuildError(
            f"the graph has the inputs [{found}] and the outputs {outputs}, expected one uint8 input (N, H, W, 3 or "
            "4) and the outputs boxes, scores, count, and further ones; build from a file that `edgerpn export` wrote"
        )


def make_options(trt: Any, builder: Any, config: BuildConfig) -> Any:
    """Returns the library's builder configuration for `config`, without profile and timing cache.

    Raises:
        BuildError: This version lacks an option.
    """
    options = builder.create_builder_config()
    # The inspector names the precision of each layer only with this.
    options.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # By TensorRT-RTX's documentation, the runtime can then capture inference in a CUDA graph.
        options.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if not config.tf32:
        options.clear_flag(trt.BuilderFlag.TF32)
    if config.workspace_mib is not None:
        options.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, config.workspace_mib << 20)
    if config.optimization_level is not None:
        options.builder_optimization_level = config.optimization_level
    if config.version_compatible:
        options.set_flag(_feature(trt.BuilderFlag, "VERSION_COMPATIBLE", "version_compatible"))
    if config.hardware_compatible:
        levels = _feature(trt, "HardwareCompatibilityLevel", "hardware_compatible")
        options.hardware_compatibility_level = levels.AMPERE_PLUS
    if config.dla_core is not None:
        _use_dla(trt, builder, options, config.dla_core)
    if config.compute_capabilities:
        _set_compute_capabilities(trt, options, config.compute_capabilities)
    return options


def _feature(owner: Any, name: str, setting: str) -> Any:
    """Returns an attribute of the library that some versions lack.

    Raises:
        BuildError: This version lacks it.
    """
    if not hasattr(owner, name):
        raise BuildError(f"{setting}: this version of the library does not have {name}; leave the option out")
    return getattr(owner, name)


def _use_dla(trt: Any, builder: Any, options: Any, core: int) -> None:
    num_cores = getattr(builder, "num_DLA_cores", 0)
    if core >= num_cores:
        raise BuildError(
            f"dla_core: expected a core below {num_cores}, the number of DLA cores that the library finds, got {core}"
        )
    options.default_device_type = trt.DeviceType.DLA
    options.DLA_core = core
    options.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _set_compute_capabilities(trt: Any, options: Any, capabilities: tuple[str, ...]) -> None:
    members = _feature(trt, "ComputeCapability", "compute_capabilities").__members__
    names = [f"SM{capability.replace('.', '')}" for capability in capabilities]
    unknown = [capability for capability, name in zip(capabilities, names, strict=True) if name not in members]
    if unknown:
        known = [f"{name[2:-1]}.{name[-1]}" for name in members if name.startswith("SM")]
        raise BuildError(
            f"compute_capabilities: this version builds for {', '.join(known)}, got {', '.join(unknown)}; "
            "use TensorRT itself for other GPUs"
        )
    options.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if not options.set_compute_capability(members[name], index):
            raise BuildError(f"compute_capabilities: the library refuses {capabilities[index]}")


def _add_profile(builder: Any, network: Any, options: Any, config: BuildConfig) -> list[int]:
    """Adds an optimization profile when the batch is dynamic; returns the batch sizes (least, tuned for, most)."""
    frames = network.get_input(0)
    fixed, *size = tuple(frames.shape)
    if fixed != -1:
        return [fixed] * 3
    batch = list(config.batch or DEFAULT_BATCH)
    profile = builder.create_optimization_profile()
    profile.set_shape(frames.name, *((n, *size) for n in batch))
    if options.add_optimization_profile(profile) < 0:
        raise BuildError(f"batch: the library refuses a profile for {batch} frames")
    return batch


def _monitor(trt: Any, tracker: PhaseTracker) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tracker.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            tracker.step(phase_name, step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            tracker.finish(phase_name)

    return Monitor()


if __name__ == "__main__":
    sys.exit(main())
