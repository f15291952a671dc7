"""TensorRT's timing cache: kernel timings of earlier builds in a file, which make the next build shorter.

Nothing but the build time depends on it, so a file that cannot be read or written is a note, not an error. Only
TensorRT has one: this follows its documentation and has not run on a GPU yet.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgerpn import files
from edgerpn.export.engine.libraries import BuildEnvironment
from edgerpn.export.engine.options import BuildConfig


def timing_cache_file(config: BuildConfig, environment: BuildEnvironment) -> tuple[str | None, str | None]:
    """Path of the file of kernel timings; by default, the cache folder has one for each version, GPU and power mode.

    Returns:
        The path, or None where the library has no such cache, it is off, or there is no folder for it; and in the last
        case a line for people.
    """
    if config.timing_cache == "off" or environment.library != "tensorrt":
        return None, None
    if config.timing_cache is not None:
        return str(Path(config.timing_cache).resolve()), None
    folder = files.cache_folder()
    if folder is None:
        return None, (
            "kernel timings are not kept for the next build: there is no home folder; name a file with "
            "--set timing_cache=FILE"
        )
    machine = environment.machine
    # Modules of one name differ in their multiprocessors, and power modes in clocks: each has its own fastest kernels.
    parts = (environment.version, machine.gpu, machine.compute_capability, machine.multiprocessors, machine.board,
             machine.power_mode)  # fmt: skip
    key = "-".join(["tensorrt", *(str(part) for part in parts if part is not None)])
    return str(folder / "timing" / (re.sub(r"[^A-Za-z0-9.]+", "-", key) + ".cache")), None


class TimingCache:
    """The timing cache of one build, in the child process."""

    def __init__(self, options: Any, file: str | None) -> None:
        """Adds the timings in `file` to the library's `options`; the library drops those of another version or GPU."""
        self._options, self._file = options, file
        self._problems: list[str] = []
        if file is None:
            return
        cache = options.create_timing_cache(self._read(file))
        if cache is None or not options.set_timing_cache(cache, ignore_mismatch=False):
            options.set_timing_cache(options.create_timing_cache(b""), ignore_mismatch=False)

    @property
    def note(self) -> str | None:
        """A line for people when the file could not be read or written."""
        if not self._problems:
            return None
        return (
            f"the kernel timings could not be kept, so the next build takes as long: {'; '.join(self._problems)}; "
            "name another file with --set timing_cache=FILE, or switch it off with --set timing_cache=off"
        )

    def save(self) -> None:
        """Writes the cache in one step, combined with timings that another build may have added to the file."""
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
            self._note_problem(self._file, error)

    def _read(self, file: str) -> bytes:
        try:
            return Path(file).read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            self._note_problem(file, error)
            return b""

    def _note_problem(self, file: str, error: OSError) -> None:
        problem = f"{error.filename or file}: {error.strerror or error}"
        if problem not in self._problems:
            self._problems.append(problem)
