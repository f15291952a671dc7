"""ONNX to a plan with TensorRT or TensorRT-RTX: the part of a build that runs in the child process.

One code path serves TensorRT 10.3 to 11 and TensorRT-RTX: networks are always strongly typed, nothing is touched that
TensorRT 11 removed, and what only some versions have is asked for with `hasattr`. The tests run it with TensorRT-RTX;
what only TensorRT has (DLA, version and hardware compatibility) follows its documentation and has not run on a GPU
yet.
"""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgerpn.errors import BuildError
from edgerpn.export.engine.build_config import DEFAULT_BATCH, BuildConfig
from edgerpn.export.engine.layer_report import inspect_layers
from edgerpn.export.engine.phases import PhaseTracker
from edgerpn.export.engine.timing_cache import TimingCache

Send = Callable[..., None]
OUTPUTS = ("boxes", "scores", "count")
MEMORY_PATTERN = re.compile(
    r"out ?of ?memory|bad_alloc|could not be allocated|cannot allocate memory|cudaErrorMemoryAllocation", re.IGNORECASE
)
"""What the libraries say when memory, of the host or the GPU, ran out."""


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

    Once `built` is sent the build has succeeded, whatever comes after.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        logger: One of its loggers.
        send: Sends an event to the parent.
        onnx_file: What to build from.
        plan_file: File to write.
        timing_cache: File of kernel timings to use and to add to, or None.
        has_gpu: Whether there is a GPU to inspect the engine on.
        config: Options.

    Raises:
        BuildError: The graph is not ours, an option is unknown to this version, or the library gives no plan.
        OSError: The plan cannot be written.
    """
    started_s = time.monotonic()
    send("progress", phase="reading the ONNX file", share=0.0)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parse(trt.OnnxParser(network, logger), onnx_file)
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
        send("layers", **inspect_layers(trt, logger, plan, batch=batch[1], is_timed=config.profile))


def _build(trt: Any, builder: Any, network: Any, options: Any, send: Send) -> Any:
    """The serialized engine, in the library's memory; sends progress and phases."""
    tracker = PhaseTracker(lambda phase, share: send("progress", phase=phase, share=round(share, 4)))
    monitor = _monitor(trt, tracker)  # must outlive the build
    options.progress_monitor = monitor
    try:
        plan = builder.build_serialized_network(network, options)
    finally:
        send("phases", seconds=tracker.seconds)
    if plan is None:
        raise BuildError("the library gave no engine")
    return plan


def parse(parser: Any, onnx_file: str) -> None:
    """Reads an ONNX file into the parser's network.

    Raises:
        BuildError: The parser refuses it; says which node.
    """
    if parser.parse_from_file(onnx_file):
        return
    problems = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"{error.node_operator()} {error.node_name()}: " if error.node_operator() else ""
        problems.append(f"{where}{error.desc()}")
    text = "; ".join(dict.fromkeys(problems)) or "it does not say why"
    if "ParseFromCodedStream" in text:
        text = "this is no ONNX file, or a damaged one; export it again, or copy it again"
    raise BuildError(f"{onnx_file}: the library's parser refuses the file: {text}")


def check_interface(network: Any, trt: Any) -> None:
    """Requires the input and the outputs of every graph of ours, see `edgerpn.manifest`.

    Raises:
        BuildError: A tensor is missing, or the input has another type or shape.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = tuple(network.get_output(index).name for index in range(network.num_outputs))
    is_ours = len(inputs) == 1 and inputs[0].name == "frames" and inputs[0].dtype == trt.DataType.UINT8
    if not is_ours or len(inputs[0].shape) != 4 or outputs != OUTPUTS:
        found = ", ".join(f"{tensor.name} {tuple(tensor.shape)}" for tensor in inputs)
        raise BuildError(
            f"the graph has the inputs [{found}] and the outputs {list(outputs)}, expected one uint8 input frames "
            f"(N, H, W, 3) and the outputs {list(OUTPUTS)}; build from a file that `edgerpn export` wrote"
        )


def make_options(trt: Any, builder: Any, config: BuildConfig) -> Any:
    """The library's form of the options, without profile and timing cache.

    Raises:
        BuildError: An option is unknown to this version.
    """
    options = builder.create_builder_config()
    # Only this lets the inspector tell the precision of each layer.
    options.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # By TensorRT-RTX's documentation this makes sure that the runtime can capture inference in a CUDA graph.
        options.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if not config.tf32:
        options.clear_flag(trt.BuilderFlag.TF32)
    if config.workspace_mib is not None:
        options.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, config.workspace_mib << 20)
    if config.optimization_level is not None:
        options.builder_optimization_level = config.optimization_level
    if config.version_compatible:
        options.set_flag(_known(trt.BuilderFlag, "VERSION_COMPATIBLE", "version_compatible"))
    if config.hardware_compatible:
        levels = _known(trt, "HardwareCompatibilityLevel", "hardware_compatible")
        options.hardware_compatibility_level = levels.AMPERE_PLUS
    if config.dla_core is not None:
        _use_dla(trt, builder, options, config.dla_core)
    if config.compute_capabilities:
        _set_compute_capabilities(trt, options, config.compute_capabilities)
    return options


def _known(owner: Any, name: str, setting: str) -> Any:
    """An attribute that not every version has.

    Raises:
        BuildError: This version has it not.
    """
    if not hasattr(owner, name):
        raise BuildError(f"{setting}: this version of the library has no {name}; leave the option out")
    return getattr(owner, name)


def _use_dla(trt: Any, builder: Any, options: Any, core: int) -> None:
    num_cores = getattr(builder, "num_DLA_cores", 0)
    if core >= num_cores:
        raise BuildError(
            f"dla_core: expected a core below {num_cores}, the number that this machine and version have, got {core}"
        )
    options.default_device_type = trt.DeviceType.DLA
    options.DLA_core = core
    options.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _set_compute_capabilities(trt: Any, options: Any, capabilities: tuple[str, ...]) -> None:
    members = _known(trt, "ComputeCapability", "compute_capabilities").__members__
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
    """The batch sizes (smallest, tuned for, largest); adds an optimization profile when the batch is dynamic."""
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
