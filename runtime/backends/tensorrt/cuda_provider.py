"""Opens a GPU through cuda.bindings, or PyCUDA; see `edgerpn.runtime.backends.tensorrt.cuda`."""

from __future__ import annotations

import threading

from edgerpn.errors import EngineLoadError, MissingDependencyError
from edgerpn.runtime.backends.tensorrt.cuda import CudaError, Device

_devices: dict[int, Device] = {}
_lock = threading.Lock()


def open_device(index: int = 0) -> Device:
    """Opens GPU `index` through cuda.bindings, or through PyCUDA without it; returns the same object each time.

    Raises:
        MissingDependencyError: Neither package is installed.
        EngineLoadError: The driver or the GPU is missing, or the driver fails.
    """
    with _lock:
        if index not in _devices:
            _devices[index] = _open(index)
        return _devices[index]


def _open(index: int) -> Device:
    # Imported late, because each imports a package that may be missing.
    try:
        from edgerpn.runtime.backends.tensorrt.cuda_bindings import CudaBindingsDevice

        return CudaBindingsDevice(index)
    except ImportError as error:
        first = error
    except CudaError as error:
        raise EngineLoadError(f"GPU {index} cannot be used: {error}") from error
    try:
        from edgerpn.runtime.backends.tensorrt.cuda_pycuda import PyCudaDevice

        return PyCudaDevice(index)
    except ImportError as error:
        raise MissingDependencyError(
            f"running an engine needs the Python package cuda-bindings ({first}) or PyCUDA ({error}). Install the one "
            "that fits the driver: pip install 'cuda-bindings>=12.9.1,<13' for CUDA 12 (JetPack 6), cuda-bindings for "
            "CUDA 13"
        ) from error
    except CudaError as error:
        raise EngineLoadError(f"GPU {index} cannot be used: {error}") from error
