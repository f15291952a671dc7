"""TensorRT's timing cache: kernel timings of earlier builds in a file, which make the next build shorter.

A cache saves time and nothing else depends on it, so a file that cannot be read or written is told, and is no error.
Only TensorRT has one: this follows its documentation and has not run on a GPU yet.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from edgerpn import files
from edgerpn.export.engine.build_config import BuildConfig


def timing_cache_file(config: BuildConfig, probed: dict[str, Any]) -> tuple[str | None, str | None]:
    """File of kernel timings; by default one for each version and GPU in the user's cache folder.

    Args:
        config: Options.
        probed: Library, version and machine, as `edgerpn.export.engine.worker` tells them.

    Returns:
        Its path, or None where the library has no such cache, it is off, or there is no folder for it; and a line for
        people when it is that.
    """
    if config.timing_cache == "off" or probed["library"] != "tensorrt":
        return None, None
    if config.timing_cache is not None:
        return str(Path(config.timing_cache).resolve()), None
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # as the XDG base directory specification asks
        try:
            base = Path.home() / ".cache"
        except RuntimeError as error:  # a user without a home folder, as in some containers
            return (
                None,
                f"kernel timings are not kept for the next build: {error}; name a file with --set timing_cache=FILE",
            )
    machine = probed["machine"]
    key = f"tensorrt-{probed['version']}-{machine['gpu']}-{machine['compute_capability']}"
    return str(base / "edgerpn" / "timing" / (re.sub(r"[^A-Za-z0-9.]+", "-", key) + ".cache")), None


class TimingCache:
    """The timing cache of one build, in the child process."""

    def __init__(self, options: Any, file: str | None) -> None:
        """Gives the library's `options` what `file` holds; a file of another version or GPU is left out."""
        self._options, self._file = options, file
        self._problems: list[str] = []
        if file is None:
            return
        cache = options.create_timing_cache(self._read(file))
        if cache is None or not options.set_timing_cache(cache, ignore_mismatch=False):
            options.set_timing_cache(options.create_timing_cache(b""), ignore_mismatch=False)

    @property
    def note(self) -> str | None:
        """A line for people about what did not work, if anything."""
        if not self._problems:
            return None
        return (
            f"the kernel timings could not be kept, so that the next build takes as long: {'; '.join(self._problems)}; "
            "name another file with --set timing_cache=FILE, or switch it off with --set timing_cache=off"
        )

    def save(self) -> None:
        """Writes the cache in one step, with what another build may have added to the file meanwhile."""
        if self._file is None:
            return
        cache = self._options.get_timing_cache()
        if cache is None:
            return
        other = self._options.create_timing_cache(self._read(self._file))
        if other is not None:
            cache.combine(other, ignore_mismatch=False)
        try:
            files.write_bytes(self._file, bytes(cache.serialize()))
        except OSError as error:
            self._keep(self._file, error)

    def _read(self, file: str) -> bytes:
        try:
            return Path(file).read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            self._keep(file, error)
            return b""

    def _keep(self, file: str, error: OSError) -> None:
        problem = f"{error.filename or file}: {error.strerror or error}"
        if problem not in self._problems:
            self._problems.append(problem)
