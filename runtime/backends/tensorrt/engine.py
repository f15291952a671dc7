"""An engine file in memory: deserialises it, checks it, and makes execution contexts.

TensorRT-RTX compiles its kernels when an execution context is made, which takes up to half a minute; the compiled
kernels are kept in the user's cache folder, by engine, version and GPU. Its own CUDA graphs are off, because the runner
captures the copies too.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgerpn import files
from edgerpn.errors import ArtifactMismatchError, EngineLoadError
from edgerpn.manifest import Manifest
from edgerpn.runtime.backends.contract import tensors_of
from edgerpn.runtime.backends.tensorrt.context import ScratchArena, create_context, make_runtime_config
from edgerpn.runtime.backends.tensorrt.cuda import Device
from edgerpn.runtime.backends.tensorrt.library import TensorRtLibrary, logger_of, make_runtime

_logger = logging.getLogger(__name__)


class TensorRtEngine:
    """Makes execution contexts of one engine file. Called inside `Device.active()`, from one thread at a time."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        library: TensorRtLibrary,
        device: Device,
        *,
        allow_host_code: bool = False,
    ) -> None:
        """Loads the file.

        Raises:
            EngineLoadError: The library cannot start, or refuses the engine.
            ArtifactMismatchError: Its inputs and outputs are not those of the manifest.
        """
        self._path = path
        self._manifest = manifest
        self._library = library
        self._log = logger_of(library.module)
        self._runtime = make_runtime(library.module)
        is_portable = manifest.engine is not None and manifest.engine.version_compatible
        if is_portable and allow_host_code:
            self._runtime.engine_host_code_allowed = True
        if manifest.engine is not None and manifest.engine.dla_core is not None:
            self._runtime.DLA_core = manifest.engine.dla_core
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            if is_portable and not allow_host_code:
                raise EngineLoadError(
                    f"{path}: {library.title} refuses the engine: {self._log.take_lines()}. A version-compatible "
                    "engine contains code for the CPU, which runs only if you trust it: --allow-host-code, or "
                    "edgerpn.runtime.load(..., allow_host_code=True)."
                )
            raise EngineLoadError(
                f"{path}: {library.title} refuses the engine: {self._log.take_lines()}. See `edgerpn inspect {path}`; "
                "build it again on this machine."
            )
        self._check_interface()
        self._cache = _RuntimeCache(path, manifest, library, device, self._engine)

    def __del__(self) -> None:
        # What made an object must outlive it (NVIDIA's documentation, Object Lifetimes). The bindings see to that for
        # contexts and engines, but not for runtime configurations.
        for name in ("_cache", "_engine", "_runtime"):
            self.__dict__.pop(name, None)

    def new_context(self, stream: int) -> Any:
        """Makes an execution context without memory, see `lend`; TensorRT-RTX compiles here.

        Args:
            stream: Stream on which the optimization profile is chosen, if needed.

        Raises:
            EngineLoadError: The library cannot make one, usually for lack of memory.
        """
        start = time.perf_counter()
        self._cache.announce()
        context = create_context(self._library.module, self._engine, self._cache.config)
        if context is None:
            raise EngineLoadError(
                f"{self._path}: {self._library.title} cannot make an execution context: {self._log.take_lines()}. If "
                "memory is short, use fewer slots, or build the engine with a smaller largest batch."
            )
        if context.active_optimization_profile != 0:
            context.set_optimization_profile_async(0, stream)
        self._cache.save()
        _logger.debug("%s: execution context in %.2f s", self._path, time.perf_counter() - start)
        return context

    def lend(self, arena: ScratchArena, context: Any, on_move: Callable[[], None]) -> int:
        """Provides a context with scratch memory; see `ScratchArena.add`."""
        num_bytes = arena.add(context, self._engine, self._log, on_move)
        self._log.take_lines()  # a refusal that was answered must not explain a later failure
        return num_bytes

    def reason(self) -> str:
        """Returns the library's errors since the last call, for the end of a message."""
        lines: str = self._log.take_lines()
        return lines

    def save_compiled(self) -> None:
        """Saves newly compiled kernels in the cache folder."""
        self._cache.save()

    def _check_interface(self) -> None:
        """Checks that inputs and outputs are those of the manifest."""
        engine, types = self._engine, self._library.module.DataType
        by_name = {"uint8": types.UINT8, "float32": types.FLOAT, "int32": types.INT32}
        profile = None if self._manifest.engine is None else self._manifest.engine.profile
        # The library calls a dimension dynamic only if its profile has a range of it.
        free = profile.max_batch if profile is not None and profile.min_batch == profile.max_batch else -1
        expected = {
            name: (by_name[dtype], tuple(free if size is None else size for size in shape))
            for name, (dtype, shape) in tensors_of(self._manifest).items()
        }
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {
            name: (engine.get_tensor_dtype(name), tuple(free if n == -1 else n for n in engine.get_tensor_shape(name)))
            for name in names
        }
        if found != expected:
            raise ArtifactMismatchError(
                f"{self._path}: the manifest says that the engine has {_show(expected)}, but it has {_show(found)}. "
                "Build it again."
            )
        sizes = [shape[0] for shape in engine.get_tensor_profile_shape(self._manifest.input.name, 0)]
        if profile is not None and sizes != [profile.min_batch, profile.opt_batch, profile.max_batch]:
            raise ArtifactMismatchError(
                f"{self._path}: the manifest says that the engine takes batches of {profile.min_batch} to "
                f"{profile.max_batch}, but it takes {sizes[0]} to {sizes[2]}. Build it again."
            )


class _RuntimeCache:
    """TensorRT-RTX's runtime configuration and its file of compiled kernels; TensorRT has neither."""

    def __init__(self, path: Path, manifest: Manifest, library: TensorRtLibrary, device: Device, engine: Any) -> None:
        self._path = path
        self._title = library.title
        self.config = make_runtime_config(library.module, engine)
        self._saved = b""
        self._file: Path | None = None
        if self.config is None:
            return
        self._cache = self.config.create_runtime_cache()
        digest = (manifest.provenance.artifact_sha256 or "")[:16]
        gpu = re.sub(r"[^A-Za-z0-9]+", "-", f"{device.info.name}-{device.info.compute_capability}")
        folder = files.cache_folder()
        self._file = folder / "tensorrt-rtx" / f"{digest}-{library.version}-{gpu}.bin" if folder else None
        self._saved = _read(self._file) if self._file else b""
        if self._saved and not self._cache.deserialize(self._saved):
            self._saved = b""
        self.config.set_runtime_cache(self._cache)

    def announce(self) -> None:
        """Logs that a long wait may follow."""
        if self.config is not None and not self._saved:
            _logger.warning(
                "%s: %s compiles the engine for this GPU, up to 30 s; the next start is fast", self._path, self._title
            )

    def save(self) -> None:
        """Writes newly compiled kernels; a folder that cannot be written costs only speed."""
        if self.config is None:
            return
        data = bytes(self._cache.serialize() or b"")
        if not data or data == self._saved:
            return
        self._saved = data
        if self._file is None:
            _logger.warning("there is no home folder to keep compiled kernels in: the next start compiles again")
            return
        try:
            files.write_bytes(self._file, data)
        except OSError as error:
            _logger.warning("%s: cannot be written (%s): the next start compiles again", self._file, error.strerror)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _show(tensors: dict[str, tuple[Any, tuple[int, ...]]]) -> str:
    return ", ".join(
        f"{name} {getattr(dtype, 'name', dtype)} {list(shape)}" for name, (dtype, shape) in tensors.items()
    )
