"""Execution contexts and the scratch memory of their intermediate results, which the caller provides.

TensorRT-RTX makes a context of an engine that was built with REQUIRE_USER_ALLOCATION in no other way. With TensorRT,
all contexts of a stream share one arena instead of holding the largest batch's memory each.

The order is: create the context, set the shapes of its inputs, ask it for the size, provide the memory, start work.

Sources: NvInferRuntime.h (ExecutionContextAllocationStrategy, updateDeviceMemorySizeForShapes, setDeviceMemoryV2, since
TensorRT 10.1) and the messages of TensorRT-RTX 1.7.1. Not run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgerpn.runtime.backends.tensorrt.cuda import Device, free_quietly
from edgerpn.runtime.backends.tensorrt.device_input import ALIGNMENT


def make_runtime_config(module: Any, engine: Any) -> Any:
    """Returns TensorRT-RTX's runtime configuration for our own CUDA graphs; None with TensorRT, which needs none."""
    if not hasattr(module, "CudaGraphStrategy"):
        return None
    config = engine.create_runtime_config()
    config.cuda_graph_strategy = module.CudaGraphStrategy.DISABLED
    # A capture must record the final kernels, not those that serve until these are compiled in the background.
    config.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
    return config


def create_context(module: Any, engine: Any, config: Any) -> Any:
    """Makes an execution context that takes its memory from a `ScratchArena`; None when the library refuses.

    Args:
        module: The library's module.
        engine: Its engine.
        config: Of `make_runtime_config`.
    """
    strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED
    if config is None:
        context = engine.create_execution_context(strategy)
    else:
        config.set_execution_context_allocation_strategy(strategy)
        context = engine.create_execution_context(config)
    if context is not None:
        # Our engines are built with DETAILED, for the inspector. By the library's documentation that makes every start
        # of the work slower; the names of the layers are its default.
        context.nvtx_verbosity = module.ProfilingVerbosity.LAYER_NAMES_ONLY
    return context


class ScratchArena:
    """Scratch memory of all execution contexts of one stream, which run one after another.

    It has the size that the first context needs, until one needs more; then it has the engine's largest size, so that
    it moves once. It stays until `free`. Every method is called inside `Device.active()`.
    """

    def __init__(self, device: Device, stream: int) -> None:
        self._device = device
        self._stream = stream
        self._address = 0
        self._contexts: dict[int, tuple[Any, Callable[[], None]]] = {}
        self.num_bytes = 0

    def add(self, context: Any, engine: Any, log: Any, on_move: Callable[[], None] = lambda: None) -> int:
        """Provides a context with memory.

        Args:
            context: A context of `create_context` whose input shapes are set; they must not change later.
            engine: Its engine.
            log: The library's logger with `num_errors`, in which a refusal shows: the library then gets the engine's
                largest size.
            on_move: Called when the memory has moved, which makes CUDA graphs of the context invalid.

        Returns:
            Bytes that the context needs.

        Raises:
            CudaError: The GPU's memory is full.
        """
        largest, before = int(engine.device_memory_size_v2), log.num_errors
        # 0 is an error or a network that needs none; the engine's largest size is right in both cases.
        needed = int(context.update_device_memory_size_for_shapes() or largest)
        self._provide(context, needed, largest)
        if log.num_errors > before and needed < largest:
            # The documentation of `set_device_memory` asks for this size, and NVIDIA's sample provides less.
            needed = largest
            self._provide(context, needed, largest)
        self._contexts[id(context)] = (context, on_move)
        return needed

    def _provide(self, context: Any, needed: int, largest: int) -> None:
        if max(needed, 1) > self.num_bytes:
            wanted = max(needed, largest if self.num_bytes else 1)
            self._grow(-(-wanted // ALIGNMENT) * ALIGNMENT)
        context.set_device_memory(self._address, self.num_bytes)

    def remove(self, context: Any) -> None:
        """Forgets a context that is about to be freed."""
        self._contexts.pop(id(context), None)

    def free(self) -> None:
        """Frees the memory; its contexts cannot run afterwards."""
        self._contexts.clear()
        address, self._address, self.num_bytes = self._address, 0, 0
        if address:
            free_quietly(lambda: self._device.free(address))

    def _grow(self, num_bytes: int) -> None:
        # Work in flight still uses the old memory.
        self._device.synchronize(self._stream)
        old, self._address = self._address, self._device.allocate(num_bytes)
        self.num_bytes = num_bytes
        for context, on_move in self._contexts.values():
            context.set_device_memory(self._address, num_bytes)
            on_move()
        if old:
            free_quietly(lambda: self._device.free(old))
