"""The work of a slot: its memory, and for each batch size an execution context and a CUDA graph.

A CUDA graph fixes shapes and addresses, so each batch size has a context of its own (NVIDIA's rule is one context for
each captured graph) and its own place in buffers that stay where they are.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from edgerpn.errors import InferenceError
from edgerpn.manifest import Manifest
from edgerpn.runtime.backend import Outputs
from edgerpn.runtime.cuda_device import CudaError, Device

_ALIGNMENT = 256
"""Bytes; every tensor starts at a multiple of this, as in memory of its own."""
_logger = logging.getLogger(__name__)


class Buffers:
    """The memory of a slot: frames and outputs, on the host and, unless the GPU works there too, on the device."""

    def __init__(self, device: Device, manifest: Manifest, max_batch: int) -> None:
        """Allocates for `max_batch` frames; called inside `Device.active()`."""
        self._device = device
        self._rows = manifest.proposals.num_proposals
        self.input_name = manifest.input.name
        height, width = manifest.input.frame_hw
        is_mapped = self.is_shared = device.info.can_share_memory
        self.frame_shape = (height, width, 3)
        frame_bytes = height * width * 3
        output_bytes = self._offsets(max_batch)[-1]
        host_input = device.allocate_host(max_batch * frame_bytes, is_mapped=is_mapped)
        host_output = device.allocate_host(output_bytes, is_mapped=is_mapped)
        self.frames = host_input.array.reshape(max_batch, *self.frame_shape)
        self._outputs = host_output.array
        self._owned: list[int] = []
        self._input_address = self._on_device(host_input.device_address, max_batch * frame_bytes)
        self._output_address = self._on_device(host_output.device_address, output_bytes)

    def _on_device(self, shared: int | None, num_bytes: int) -> int:
        if shared is not None:
            return shared
        self._owned.append(self._device.allocate(num_bytes))
        return self._owned[-1]

    def _offsets(self, size: int) -> tuple[int, int, int, int]:
        """Where boxes, scores and count of a batch size start, and where they end, bytes."""
        ends = [0]
        for num_bytes in (size * self._rows * 16, size * self._rows * 4, size * 4):
            ends.append(-(-(ends[-1] + num_bytes) // _ALIGNMENT) * _ALIGNMENT)
        return ends[0], ends[1], ends[2], ends[3]

    def addresses(self, size: int) -> dict[str, int]:
        """Device address of every tensor at a batch size."""
        boxes, scores, count, _ = self._offsets(size)
        base = self._output_address
        return {
            self.input_name: self._input_address, "boxes": base + boxes, "scores": base + scores, "count": base + count
        }  # fmt: skip

    def upload(self, size: int, stream: int) -> None:
        """Starts the copy of `size` frames to the device, if one is needed."""
        if not self.is_shared:
            self._device.upload(self._input_address, self.frames[:size].reshape(-1), stream)

    def download(self, size: int, stream: int) -> None:
        """Starts the copy of the outputs of `size` frames to the host, if one is needed."""
        if not self.is_shared:
            self._device.download(self._outputs[: self._offsets(size)[-1]], self._output_address, stream)

    def outputs(self, size: int, num_frames: int) -> Outputs:
        """Views of the outputs of the first `num_frames` of `size` frames."""
        boxes, scores, count, _ = self._offsets(size)
        raw, rows = self._outputs, self._rows
        return (
            raw[boxes : boxes + size * rows * 16].view(np.float32).reshape(size, rows, 4)[:num_frames],
            raw[scores : scores + size * rows * 4].view(np.float32).reshape(size, rows)[:num_frames],
            raw[count : count + size * 4].view(np.int32)[:num_frames],
        )

    def free(self) -> None:
        """Frees the device memory; pinned memory goes with the last view of it."""
        while self._owned:
            self._device.free(self._owned.pop())


class Plan:
    """The work of one batch size in one slot: an execution context and, where capture works, its CUDA graph."""

    def __init__(self, context: Any, device: Device, stream: int, size: int, buffers: Buffers) -> None:
        """Binds `context`, which it takes over, to the buffers at batch size `size`."""
        self.size = size
        self._context = context
        self._device = device
        self._stream = stream
        self._buffers = buffers
        self._graph: int | None = None
        self._graph_source: int | None = None
        self._last_source: int | None = None
        context.set_input_shape(buffers.input_name, (size, *buffers.frame_shape))
        for tensor, address in buffers.addresses(size).items():
            context.set_tensor_address(tensor, address)

    def capture(self, source: int | None = None) -> str | None:
        """Runs the work once, then records it; returns why it cannot be recorded, or None.

        Args:
            source: Device address that frames are read from in place; None: they are uploaded from the slot.
        """
        self._enqueue(source)  # the library sets itself up in the first run, which must not be recorded
        self._device.synchronize(self._stream)
        if self._device.info.why_no_graphs is not None:
            return self._device.info.why_no_graphs
        if hasattr(self._context, "is_stream_capturable") and not self._context.is_stream_capturable(self._stream):
            return "the library says that this engine cannot be captured"
        self._drop_graph()
        try:
            self._graph = self._record(source)
        except (CudaError, InferenceError) as error:
            return str(error)
        self._graph_source = source
        return None

    def start(self, source: int | None = None) -> None:
        """Starts the work; from a device address, it is recorded when the same one comes twice in a row."""
        if source is not None and source != self._graph_source and source == self._last_source:
            self._last_source = None  # tried once only
            self.capture(source)
        elif source is not None:
            self._last_source = source
        if self._graph is not None and source == self._graph_source:
            self._device.launch_graph(self._graph, self._stream)
        else:
            self._enqueue(source)

    def close(self) -> None:
        """Frees graph and context."""
        self._drop_graph()
        self._context = None

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._device.destroy_graph(self._graph)
            self._graph = self._graph_source = None

    def _record(self, source: int | None) -> int:
        self._device.begin_capture(self._stream)
        try:
            self._enqueue(source)
        except (CudaError, InferenceError):
            self._end_failed_capture()
            raise
        return self._device.end_capture(self._stream)

    def _end_failed_capture(self) -> None:
        try:
            self._device.destroy_graph(self._device.end_capture(self._stream))
        except CudaError as error:
            _logger.debug("a capture that failed was dropped: %s", error)

    def _enqueue(self, source: int | None) -> None:
        if source is None:
            self._buffers.upload(self.size, self._stream)
        else:
            self._context.set_tensor_address(self._buffers.input_name, source)
        if not self._context.execute_async_v3(self._stream):
            raise InferenceError(f"the library refused to start a batch of {self.size}")
        self._buffers.download(self.size, self._stream)
