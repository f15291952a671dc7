"""Frames in GPU memory, read in place from arrays of any package: PyTorch, CuPy, PyCUDA, Numba.

Two protocols tell where the memory is and when it is ready:

    __dlpack__(stream=...)        the owner makes our stream wait for its own; preferred
    __cuda_array_interface__      version 3 names the stream to wait for; with older versions, we wait for the legacy
                                  default stream, the default of PyTorch, CuPy and PyCUDA

Sources: the DLPack C header (DLManagedTensor) and Python specification; CUDA Array Interface, version 3.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from edgerpn.errors import InputError
from edgerpn.manifest import Manifest
from edgerpn.runtime.backends.tensorrt.cuda import LEGACY_STREAM, Device

ALIGNMENT = 256
"""Bytes; TensorRT requires the address of every tensor to be a multiple (NvInferRuntime.h, setTensorAddress)."""

_ON_GPU = (2, 13)
"""DLPack's accepted device types: CUDA, managed. Pinned host memory (3) is not: its owners refuse a stream."""
_UINT8 = (1, 8, 1)
"""DLPack's code, bits and lanes of uint8."""


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DeviceFrames:
    """Frames in device memory: contiguous uint8 (N, H, W, C)."""

    address: int
    """Device address of the first byte."""
    num_frames: int
    """N."""
    producer: int | None
    """Stream to wait for before reading; None when the owner has synchronized already."""
    owner: Any
    """Object that keeps the memory alive."""

    @property
    def is_aligned(self) -> bool:
        """True if a tensor may start at their address; a part of aligned frames may be unaligned."""
        return self.address % ALIGNMENT == 0

    def part(self, start: int, stop: int, frame_bytes: int) -> DeviceFrames:
        """Returns the frames from `start` to `stop`."""
        return DeviceFrames(
            address=self.address + start * frame_bytes,
            num_frames=stop - start,
            producer=self.producer,
            owner=self.owner,
        )


def take(array: object, manifest: Manifest, device: Device, stream: int) -> DeviceFrames:
    """Checks an array and describes its memory; nothing is copied.

    Args:
        array: Has `__dlpack__` or `__cuda_array_interface__`; (N, H, W, C) uint8 BGR, C-contiguous.
        manifest: Defines H, W and C.
        device: The GPU that the engine runs on.
        stream: The stream that will read the frames.

    Raises:
        InputError: It is not such an array, or not in this GPU's memory.
    """
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        frames, shape = _from_dlpack(array, device, stream)
    elif hasattr(array, "__cuda_array_interface__"):
        frames, shape = _from_interface(array, device)
    else:
        raise InputError(
            f"frames: expected an array in GPU memory (PyTorch, CuPy, PyCUDA, ...), got {type(array).__name__}, which "
            "has neither __dlpack__ nor __cuda_array_interface__; pass NumPy arrays to `infer`"
        )
    expected = manifest.input.frame_shape
    if len(shape) != 4 or shape[1:] != expected or shape[0] < 1:
        sizes = ", ".join(map(str, expected))
        raise InputError(f"frames: expected shape (N, {sizes}) with N >= 1, got {shape}")
    return frames


def _from_dlpack(array: Any, device: Device, stream: int) -> tuple[DeviceFrames, tuple[int, ...]]:
    kind, index = (int(number) for number in array.__dlpack_device__())
    if kind not in _ON_GPU:
        raise InputError(
            f"frames: expected an array in GPU memory, got one on DLPack device type {kind}; move it to the GPU, or "
            "pass a NumPy array to `infer`"
        )
    if kind == _ON_GPU[0]:
        _check_index(index, device)
    try:
        capsule = array.__dlpack__(stream=stream)
    except (BufferError, TypeError) as error:
        raise InputError(f"frames: {type(array).__name__} refuses access to its memory: {error}") from error
    # We do not consume the capsule: it frees its tensor with the last reference to it.
    tensor = _DLTensor.from_address(_get_pointer(capsule, b"dltensor"))
    if (tensor.code, tensor.bits, tensor.lanes) != _UINT8:
        raise InputError(
            f"frames: expected dtype uint8, got DLPack type code {tensor.code} of {tensor.bits} bits x {tensor.lanes}"
        )
    shape = tuple(tensor.shape[: tensor.ndim])
    _check_strides(shape, tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None)
    address = (tensor.data or 0) + tensor.byte_offset
    frames = DeviceFrames(address=address, num_frames=shape[0] if shape else 0, producer=None, owner=(array, capsule))
    return frames, shape


def _from_interface(array: Any, device: Device) -> tuple[DeviceFrames, tuple[int, ...]]:
    interface = array.__cuda_array_interface__
    if interface["typestr"][1:] != "u1":
        raise InputError(f"frames: expected dtype uint8 ('|u1'), got {interface['typestr']!r}")
    if interface.get("mask") is not None:
        raise InputError("frames: expected an array without a mask")
    shape = tuple(int(size) for size in interface["shape"])
    _check_strides(shape, interface.get("strides"))
    address = int(interface["data"][0])
    index = device.index_of(address)
    if index is not None:
        _check_index(index, device)
    # In version 3, None means that there is nothing to wait for; older versions cannot tell.
    producer = interface.get("stream") if interface.get("version", 0) >= 3 else LEGACY_STREAM
    frames = DeviceFrames(
        address=address,
        num_frames=shape[0] if shape else 0,
        producer=None if producer is None else int(producer),
        owner=array,
    )
    return frames, shape


def _check_index(index: int, device: Device) -> None:
    if index != device.info.index:
        raise InputError(f"frames: expected an array on GPU {device.info.index}, where the engine is, got GPU {index}")


def _check_strides(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
    """Requires C order; with uint8, strides in bytes and in elements are the same."""
    if strides is None:
        return
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            raise InputError(
                f"frames: expected a C-contiguous array, got strides {tuple(strides)} for shape {shape}; make it "
                "contiguous first"
            )
        expected *= size
