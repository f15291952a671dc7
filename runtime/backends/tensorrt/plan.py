"""The work of a slot: its memory, and for each batch size an execution context and a CUDA graph.

A CUDA graph fixes shapes and addresses, so each batch size has a context of its own (NVIDIA's rule is one context for
each captured graph) and its own place in buffers that stay where they are.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from edgerpn.errors import InferenceError
from edgerpn.manifest import Manifest
from edgerpn.proposals import Outputs, output_dtype
from edgerpn.runtime.backends.contract import output_shapes
from edgerpn.runtime.backends.tensorrt.context import ScratchArena
from edgerpn.runtime.backends.tensorrt.cuda import CudaError, Device, HostBuffer, free_quietly
from edgerpn.runtime.backends.tensorrt.device_input import ALIGNMENT
from edgerpn.runtime.backends.tensorrt.engine import TensorRtEngine
from edgerpn.runtime.tracing import span

_logger = logging.getLogger(__name__)


class SlotBuffers:
    """The memory of a slot: frames and outputs, on the host and, unless the GPU shares it, on the device."""

    def __init__(self, device: Device, manifest: Manifest, max_batch: int, *, is_shared: bool) -> None:
        """Allocates for `max_batch` frames; called inside `Device.active()`.

        Args:
            device: The GPU.
            manifest: Describes the engine's inputs and outputs.
            max_batch: Largest batch.
            is_shared: Whether the GPU works in the host's memory, so that nothing is copied. `share` changes it later.
        """
        self._device = device
        self._shapes = output_shapes(manifest)
        self.input_name = manifest.input.name
        self._output_names = [spec.name for spec in manifest.outputs_by_role.values()]
        self.frame_shape = manifest.input.frame_shape
        self._frame_bytes = math.prod(self.frame_shape)
        self._owned: list[int] = []
        self._host_input = device.allocate_host(max_batch * self._frame_bytes, is_mapped=is_shared)
        self._host_output = device.allocate_host(self._offsets(max_batch)[-1], is_mapped=is_shared)
        self.frames = self._host_input.array.reshape(max_batch, *self.frame_shape)
        self._outputs = self._host_output.array
        try:
            self.share(is_shared)
        except BaseException:
            self.free()
            raise

    def share(self, is_shared: bool) -> None:
        """Lets the GPU work in the host's memory, or in memory of its own; plans must be bound again afterwards.

        Args:
            is_shared: True only if the buffers were made so.
        """
        self.free()
        self.is_shared = is_shared
        self._input_address = self._on_device(self._host_input)
        self._output_address = self._on_device(self._host_output)

    def _on_device(self, host: HostBuffer) -> int:
        if self.is_shared and host.device_address is not None:
            return host.device_address
        self._owned.append(self._device.allocate(host.array.nbytes))
        return self._owned[-1]

    def _offsets(self, size: int) -> list[int]:
        """Offsets of the outputs of a batch size, and of their end, bytes."""
        ends = [0]
        for shape in self._shapes.values():
            ends.append(-(-(ends[-1] + _num_bytes(size, shape)) // ALIGNMENT) * ALIGNMENT)
        return ends

    def addresses(self, size: int) -> dict[str, int]:
        """Device address of every tensor at a batch size."""
        outputs = zip(self._output_names, self._offsets(size)[:-1], strict=True)
        return {self.input_name: self._input_address, **{name: self._output_address + at for name, at in outputs}}

    def upload(self, size: int, stream: int) -> None:
        """Starts the copy of `size` frames to the device, if one is needed."""
        if not self.is_shared:
            self._device.upload(self._input_address, self.frames[:size].reshape(-1), stream)

    def copy_in(self, address: int, size: int, stream: int) -> int:
        """Starts the copy of `size` frames from elsewhere on the device; returns their new address."""
        self._device.copy_device(self._input_address, address, size * self._frame_bytes, stream)
        return self._input_address

    def download(self, size: int, stream: int) -> None:
        """Starts the copy of the outputs of `size` frames to the host, if one is needed."""
        if not self.is_shared:
            self._device.download(self._outputs[: self._offsets(size)[-1]], self._output_address, stream)

    def outputs(self, size: int, num_frames: int) -> Outputs:
        """Views of the outputs of the first `num_frames` of `size` frames."""
        arrays: dict[str, Any] = {}
        for (role, shape), start in zip(self._shapes.items(), self._offsets(size), strict=False):
            raw = self._outputs[start : start + _num_bytes(size, shape)]
            array = raw.view(output_dtype(role))
            arrays[role] = array.reshape(size, *shape)[:num_frames]
        return Outputs(**arrays)

    def free(self) -> None:
        """Frees the device memory; pinned memory is freed with the last view of it."""
        while self._owned:
            address = self._owned.pop()
            free_quietly(lambda address=address: self._device.free(address))  # type: ignore[misc]


def _num_bytes(size: int, shape: tuple[int, ...]) -> int:
    """Bytes of an output for `size` frames; every element type has four."""
    return 4 * size * math.prod(shape)


class BatchPlan:
    """The work of one batch size in one slot: an execution context and, where capture works, its CUDA graph."""

    def __init__(
        self, engine: TensorRtEngine, device: Device, stream: int, size: int, buffers: SlotBuffers, arena: ScratchArena
    ) -> None:
        """Makes a context for batch size `size`, and binds it to the buffers and to the arena's memory.

        Raises:
            EngineLoadError: The library cannot make a context.
            InferenceError: The library refuses the shape or an address.
            CudaError: The GPU's memory is full.
        """
        self.size = size
        self.has_run = False
        self.why_no_graph: str | None = device.info.why_no_graphs
        self._device = device
        self._stream = stream
        self._buffers = buffers
        self._arena = arena
        self._graph: int | None = None
        self._graph_source: int | None = None
        self._last_source: int | None = None
        self._context: Any = engine.new_context(stream)
        try:
            self.scratch_bytes = self._bind(engine)
        except BaseException:
            self.close()
            raise

    @property
    def has_graph(self) -> bool:
        """True if a CUDA graph is ready to launch."""
        return self._graph is not None

    def _bind(self, engine: TensorRtEngine) -> int:
        """Sets shape, scratch memory and addresses, in the order that the library needs; returns the scratch bytes."""
        shape = (self.size, *self._buffers.frame_shape)
        if not self._context.set_input_shape(self._buffers.input_name, shape):
            raise InferenceError(f"the library refused frames of shape {shape}")
        scratch_bytes = engine.lend(self._arena, self._context, self._drop_graph)
        self._set_addresses()
        return scratch_bytes

    def _set_addresses(self) -> None:
        for tensor, address in self._buffers.addresses(self.size).items():
            self._set_address(tensor, address)

    def rebind(self) -> None:
        """Takes over buffers whose addresses have changed, and records the work again."""
        self._drop_graph()
        self._set_addresses()
        self.warm_up()
        self.capture()

    def time_ms(self) -> float:
        """Milliseconds of the GPU for one batch, copies included; waits for it."""
        return self._device.time_ms(self.start, self._stream)

    def warm_up(self) -> None:
        """Runs the work once and waits: the library sets itself up in the first run, which must not be recorded."""
        self.start()
        self._device.synchronize(self._stream)

    def wants_graph(self, source: int) -> bool:
        """True if frames come from the same address twice in a row, and no recording has failed."""
        return self.why_no_graph is None and source == self._last_source and source != self._graph_source

    def capture(self, source: int | None = None) -> str | None:
        """Records the work, which has run before; returns the reason for a failure, or None.

        After a failure, later calls return the same reason without another try.

        Args:
            source: Device address from which frames are read in place; None: they are uploaded from the slot.
        """
        if self.why_no_graph is None:
            self.why_no_graph = self._try_capture(source)
        return self.why_no_graph

    def start(self, source: int | None = None) -> None:
        """Starts the work, as a graph if it was recorded for this source; see `capture` for the argument."""
        if self._graph is not None and source == self._graph_source:
            self._device.launch_graph(self._graph, self._stream)
        else:
            self._enqueue(source)
        self.has_run, self._last_source = True, source

    def time_parts(self) -> dict[str, float]:
        """Milliseconds of upload, inference and download, each started and waited for; no CUDA graph takes part."""
        parts: dict[str, Callable[[], None]] = {
            "upload": partial(self._buffers.upload, self.size, self._stream),
            "inference": self._execute,
            "download": partial(self._buffers.download, self.size, self._stream),
        }
        taken_ms: dict[str, float] = {}
        for part, start in parts.items():
            start_s = time.perf_counter()
            start()
            self._device.synchronize(self._stream)
            taken_ms[part] = (time.perf_counter() - start_s) * 1e3
        return taken_ms

    def close(self) -> None:
        """Frees graph and context; the arena's memory stays with the slot."""
        self._drop_graph()
        self._arena.remove(self._context)
        self._context = None

    def _drop_graph(self) -> None:
        self._replace_graph(None, None)

    def _try_capture(self, source: int | None) -> str | None:
        if hasattr(self._context, "is_stream_capturable") and not self._context.is_stream_capturable(self._stream):
            return "the library reports that this engine cannot be captured"
        self._device.synchronize(self._stream)
        try:
            self._replace_graph(self._record(source), source)
        except (CudaError, InferenceError) as error:
            return str(error)
        return None

    def _replace_graph(self, graph: int | None, source: int | None) -> None:
        old, self._graph, self._graph_source = self._graph, graph, source
        if old is not None:
            free_quietly(lambda: self._device.destroy_graph(old))

    def _record(self, source: int | None) -> int:
        self._device.begin_capture(self._stream)
        try:
            self._enqueue(source)
        except BaseException:
            # An open capture would record all later work of the stream.
            self._end_failed_capture()
            raise
        return self._device.end_capture(self._stream)

    def _end_failed_capture(self) -> None:
        try:
            self._device.destroy_graph(self._device.end_capture(self._stream))
        except CudaError as error:
            _logger.debug("dropped a failed capture: %s", error)

    def _set_address(self, tensor: str, address: int) -> None:
        if not self._context.set_tensor_address(tensor, address):
            raise InferenceError(f"the library refused the address {address:#x} for {tensor}")

    def _enqueue(self, source: int | None) -> None:
        with span("enqueue upload"):
            if source is None:
                self._buffers.upload(self.size, self._stream)
            else:
                self._set_address(self._buffers.input_name, source)
        with span("enqueue inference"):
            self._execute()
        with span("enqueue download"):
            self._buffers.download(self.size, self._stream)

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise InferenceError(f"the library refused to start a batch of {self.size}")
