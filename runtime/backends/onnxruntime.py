"""The ONNX Runtime backend: the CPU anywhere, CUDA and TensorRT where onnxruntime-gpu is installed.

On a GPU, inputs and outputs are bound, so that results are written directly into arrays that the caller owns; on a CPU
plain `run` is a little faster (1 to 4 % of a graph of half a millisecond). The GPU providers have not been run here.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerpn import manifest as manifests
from edgerpn.errors import ArtifactMismatchError, InferenceError, require
from edgerpn.machine import available_cores, bind_to_process
from edgerpn.manifest import Manifest
from edgerpn.proposals import Outputs, output_dtype
from edgerpn.runtime.backends.contract import (
    check_frames,
    check_outputs,
    output_shapes,
    refuse_layout,
    run_in_parts,
    tensors_of,
)
from edgerpn.runtime.onnx_session import (
    CPU,
    Provider,
    choose_providers,
    library_failures,
    open_session,
    preload_libraries,
    running_provider,
    short_name,
)
from edgerpn.runtime.tracing import span

_logger = logging.getLogger(__name__)
_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)", "int32": "tensor(int32)"}


class OnnxRuntimeBackend:
    """Runs an ONNX file; see `edgerpn.runtime.backends.contract.Backend` for the contract."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
        verify: bool = True,
    ) -> None:
        """Loads the file and checks it against its manifest; arguments and errors as in `open_backend`."""
        if threads is not None and threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        path = Path(path)
        # Read before the library is loaded, so that a missing file or a wrong hash is reported in milliseconds.
        self._manifest = manifests.find(path, verify=verify)
        library = require("onnxruntime", extra="onnxruntime", purpose="running ONNX models")
        chosen = choose_providers(providers, library.get_available_providers())
        preload_libraries(library, chosen)
        threads = threads or available_cores()
        refuse_layout(path, self._manifest)
        self._session = open_session(library, path, chosen, threads, disabled=harmful_optimizers(self._manifest))
        _check_interface(path, self._session, self._manifest)
        self._shapes = output_shapes(self._manifest)
        self._output_names = [spec.name for spec in self._manifest.outputs_by_role.values()]
        self._provider = running_provider(path, self._session, chosen, library.__version__, is_asked=bool(providers))
        self._version = library.__version__
        self._failures = library_failures(library)
        self._is_bound = not self.is_cpu
        # Two threads must not use one binding at once.
        self._local = threading.local()
        bind_to_process(self, "_session", "_local")

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def name(self) -> str:
        """Library, version and the provider that runs the graph."""
        return f"ONNX Runtime {self._version} ({short_name(self._provider)})"

    @property
    def is_cpu(self) -> bool:
        """True if the CPU provider runs the graph."""
        return self._provider == CPU

    @property
    def frames_in_flight(self) -> int:
        """Two on a CPU, because one caller leaves gaps between calls; else one."""
        return 2 if self.is_cpu else 1

    @property
    def max_batch(self) -> int | None:
        return None

    def infer(self, frames: npt.NDArray[np.uint8]) -> Outputs:
        """Runs the graph; see `Backend.infer`. A graph of fixed batch runs as often as needed."""
        return run_in_parts(self._run, check_frames(frames, self._manifest), fixed=self._manifest.input.batch)

    def close(self) -> None:
        """Frees the session."""
        self._session = None
        self._local = threading.local()  # the bindings hold the session too

    def _run(self, frames: npt.NDArray[np.uint8]) -> Outputs:
        session = self._session
        if session is None:
            raise RuntimeError("the model is closed")
        try:
            run = self._run_bound if self._is_bound else self._run_plain
            with span("inference"):
                outputs = run(session, frames)
        except self._failures as error:
            raise InferenceError(f"ONNX Runtime failed on frames of shape {frames.shape}: {error}") from error
        check_outputs(outputs, len(frames), self._shapes, num_classes=len(self._manifest.class_names))
        return outputs

    def _run_plain(self, session: Any, frames: npt.NDArray[np.uint8]) -> Outputs:
        arrays = session.run(self._output_names, {self._manifest.input.name: frames})
        return Outputs(**dict(zip(self._shapes, arrays, strict=True)))

    def _run_bound(self, session: Any, frames: npt.NDArray[np.uint8]) -> Outputs:
        """Lets the library write its outputs directly into new arrays."""
        arrays: dict[str, npt.NDArray[Any]] = {
            role: np.empty((len(frames), *shape), output_dtype(role)) for role, shape in self._shapes.items()
        }
        binding = getattr(self._local, "binding", None)
        if binding is None:
            binding = self._local.binding = session.io_binding()
        binding.bind_cpu_input(self._manifest.input.name, frames)
        for name, array in zip(self._output_names, arrays.values(), strict=True):
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        session.run_with_iobinding(binding)
        return Outputs(**arrays)


def harmful_optimizers(manifest: Manifest) -> list[str]:
    """Names the optimizers of ONNX Runtime that must stay off for a model.

    `WeightBiasQuantization` quantizes the biases of convolutions between Q and DQ with the product of both scales. In
    int8 graphs for TensorRT these scales are float16, and their product is far too coarse (measured: seven times the
    error of the graph as it is written). int8 graphs for ONNX Runtime have float32 scales and need it to be fast.
    """
    is_coarse = manifest.precision == "int8" and manifest.target != "onnxruntime"
    return ["WeightBiasQuantization"] if is_coarse else []


def _check_interface(path: Path, session: Any, manifest: Manifest) -> None:
    """Checks that the graph's inputs and outputs are those of the manifest."""
    found = {node.name: (node.type, tuple(node.shape)) for node in (*session.get_inputs(), *session.get_outputs())}
    for name, (dtype, shape) in tensors_of(manifest).items():
        if name not in found or found[name][0] != _TYPES[dtype] or not _fits(found[name][1], shape):
            raise ArtifactMismatchError(
                f"{path}: the manifest says that the graph has {name!r} as {dtype} {_show(shape)}, but the graph has "
                f"{found.get(name, f'no such tensor, only {sorted(found)}')}. Export the model again; if a "
                f"tool renamed tensors, use: edgerpn check {path.name} --against ORIGINAL.onnx --reseal"
            )


def _fits(found: tuple[Any, ...], expected: tuple[int | None, ...]) -> bool:
    """Returns whether the graph's shape is the manifest's; a symbol in the graph may only be the dynamic batch."""
    if len(found) != len(expected):
        return False
    # Outputs of some graphs lose their static shape in shape inference; `check_outputs` checks them at run time.
    return all(not isinstance(have, int) or want == have for have, want in zip(found, expected, strict=True))


def _show(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("N" if size is None else str(size) for size in shape) + "]"
