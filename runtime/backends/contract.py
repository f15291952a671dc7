"""The interface of inference backends; `edgerpn.runtime.backends.open_backend` chooses one for a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edgerpn.errors import EngineLoadError, InferenceError, InputError, NotFiniteError, check_setting
from edgerpn.manifest import Manifest
from edgerpn.proposals import Outputs

GpuWait = Literal["auto", "spin", "block"]
FrameMemory = Literal["auto", "mapped", "copied"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Settings of a loaded engine."""

    num_slots: int = 2
    """Batches in flight, each with memory and execution contexts of its own; 1 saves memory."""
    gpu_wait: GpuWait = "auto"
    """spin: a waiting thread may keep a core busy; block: it sleeps, which costs some microseconds; auto: block on an
    integrated GPU, where cores are few."""

    frame_memory: FrameMemory = "auto"
    """mapped: the GPU works in the host's memory; copied: frames and outputs are copied to its own; auto: on an
    integrated GPU both are timed while the engine loads, and the faster one stays; any other GPU copies."""

    def __post_init__(self) -> None:
        check_setting(1 <= self.num_slots <= 64, "num_slots", "1 to 64", self.num_slots)


class Backend(Protocol):
    """Runs one artifact. Several threads may call `infer` at once; after `close` it cannot be used."""

    @property
    def manifest(self) -> Manifest:
        """The artifact's manifest."""
        ...

    @property
    def name(self) -> str:
        """Text with the library, its version and the device that runs the graph."""
        ...

    @property
    def is_cpu(self) -> bool:
        """True if the graph runs on the CPU, where our threads compete with it."""
        ...

    @property
    def frames_in_flight(self) -> int:
        """Number of concurrent callers of `infer` that gives the best throughput when frames are not live."""
        ...

    @property
    def max_batch(self) -> int | None:
        """Frames that a graph of dynamic batch runs at once at most; None: any number."""
        ...

    def infer(self, frames: npt.NDArray[np.uint8]) -> Outputs:
        """Runs the graph.

        Args:
            frames: (N, H, W, C) uint8 BGR with the manifest's `frame_shape`, any N.

        Returns:
            Boxes in pixels of `frames`, scores, counts, and what else the graph has; owned by the caller.

        Raises:
            InputError: `frames` does not fit the manifest.
            InferenceError: The library failed.
        """
        ...

    def close(self) -> None:
        """Frees the session; does nothing the second time."""
        ...


@runtime_checkable
class PartsTimer(Protocol):
    """A backend that can tell the parts of its inference apart."""

    def time_parts(self) -> dict[str, float]:
        """Runs the smallest batch on the frames of an earlier call; milliseconds of upload, inference and download.

        Each part is waited for, and no CUDA graph takes part, so that their sum exceeds the time of `infer`.

        Raises:
            InferenceError: The library failed.
        """
        ...


def refuse_layout(path: str | Path, manifest: Manifest) -> None:
    """Refuses a graph that was exported for another program.

    Raises:
        EngineLoadError: Its layout is not ours.
    """
    if manifest.layout != "proposals":
        raise EngineLoadError(
            f"{path}: this graph is in the layout of {manifest.layout}, another program, and only that runs it. Here, "
            "run the ONNX file that it was made from, or export the model without --layout."
        )


def tensors_of(manifest: Manifest) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    """Element type and shape by name of the graph's input and outputs; None is a dynamic batch."""
    batch, shapes = manifest.input.batch, output_shapes(manifest)
    outputs = {spec.name: (spec.dtype, (batch, *shapes[role])) for role, spec in manifest.outputs_by_role.items()}
    return {manifest.input.name: ("uint8", (batch, *manifest.input.frame_shape)), **outputs}


def output_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """Shape of each output for one frame, by its name in `Outputs`, in the order of the graph."""
    return {role: tuple(int(size) for size in spec.shape[1:]) for role, spec in manifest.outputs_by_role.items()}


def check_frames(frames: object, manifest: Manifest) -> npt.NDArray[np.uint8]:
    """Returns `frames` as a C-contiguous array if it fits the manifest's graph.

    Raises:
        InputError: It is not a uint8 array of shape (N, H, W, C) with the manifest's height, width and channels.
    """
    expected = manifest.input.frame_shape
    if not isinstance(frames, np.ndarray):
        raise InputError(f"frames: expected a NumPy array, got {type(frames).__name__}")
    if frames.dtype != np.uint8:
        raise InputError(f"frames: expected dtype uint8 (0..255, BGR, not normalised), got {frames.dtype}")
    if frames.ndim != 4 or frames.shape[1:] != expected or not len(frames):
        sizes = ", ".join(map(str, expected))
        raise InputError(f"frames: expected shape (N, {sizes}) with N >= 1, got {frames.shape}")
    return np.ascontiguousarray(frames)


def run_in_parts(
    run: Callable[[npt.NDArray[np.uint8]], Outputs],
    frames: npt.NDArray[np.uint8],
    *,
    fixed: int | None,
    most: int | None = None,
) -> Outputs:
    """Runs a graph as often as its batch demands.

    Args:
        run: Runs the graph once.
        frames: Any number of frames.
        fixed: Frames of each run, the last ones black; None: any number.
        most: Frames of a run at most; None: no limit.
    """
    size = fixed or most or len(frames)
    if len(frames) <= size and fixed in (None, len(frames)):
        return run(frames)
    parts = []
    for start in range(0, len(frames), size):
        part = frames[start : start + size]
        if fixed is not None and len(part) < fixed:
            filler = np.zeros((fixed - len(part), *frames.shape[1:]), np.uint8)
            parts.append(_first(run(np.concatenate([part, filler])), len(part)))
        else:
            parts.append(run(part))
    return Outputs.join(parts)


def _first(outputs: Outputs, num_frames: int) -> Outputs:
    return outputs.each(lambda array: array[:num_frames])


def check_outputs(
    outputs: Outputs, num_frames: int, shapes: Mapping[str, tuple[int, ...]], *, num_classes: int = 0
) -> None:
    """Checks the outputs of a graph for `num_frames` frames against its `output_shapes`.

    Raises:
        InferenceError: A shape, a count or a label breaks the interface.
        NotFiniteError: A value is not finite.
    """
    expected = tuple((num_frames, *shape) for shape in shapes.values())
    found = tuple(getattr(outputs, role).shape for role in shapes)
    if found != expected:
        raise InferenceError(
            f"the graph's outputs have the shapes {found}, expected {expected}; export the model again"
        )
    count, num_proposals = outputs.count, shapes["scores"][0]
    if count.min() < 0 or count.max() > num_proposals:
        raise InferenceError(f"the graph counts {count.tolist()} proposals, expected 0 to {num_proposals}")
    labels = outputs.labels
    if labels is not None and not 0 <= labels.min() <= labels.max() < num_classes:
        raise InferenceError(
            f"the graph's labels are {labels.min()} to {labels.max()}, expected 0 to {num_classes - 1}"
        )
    for role, array in outputs.present.items():
        # A product with itself is one pass without a copy: finite if every value is.
        if array.dtype == np.float32 and not math.isfinite(np.vdot(array, array)):
            _refuse_values(role, array)


def _refuse_values(role: str, array: npt.NDArray[np.float32]) -> None:
    num_wrong = int(array.size - np.isfinite(array).sum())
    # Only values beyond 1e19 overflow in the product.
    if num_wrong:
        raise NotFiniteError(
            f"the graph gives {num_wrong} of {array.size} {role} that are not finite numbers; float16 may have "
            "overflowed: export with --precision fp32. `edgerpn check` compares a graph with its checkpoint"
        )
