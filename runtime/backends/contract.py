"""The interface of inference backends; `edgerpn.runtime.backends.open_backend` chooses one for a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from edgerpn.errors import InferenceError, InputError, check_setting
from edgerpn.manifest import Manifest

Outputs = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int32]]
"""boxes (N, K, 4), scores (N, K), count (N,): the graph's interface, see `edgerpn.manifest`."""

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

    def infer(self, frames: npt.NDArray[np.uint8]) -> Outputs:
        """Runs the graph.

        Args:
            frames: (N, H, W, C) uint8 BGR with the manifest's `frame_shape`, any N.

        Returns:
            Boxes in pixels of `frames`, scores and counts; owned by the caller.

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


def tensors_of(manifest: Manifest) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    """Element type and shape by name of the graph's input and outputs; None is a dynamic batch."""
    batch, rows = manifest.input.batch, manifest.proposals.num_proposals
    boxes, scores, count = manifest.output_names
    return {
        manifest.input.name: ("uint8", (batch, *manifest.input.frame_shape)),
        boxes: ("float32", (batch, rows, 4)),
        scores: ("float32", (batch, rows)),
        count: ("int32", (batch,)),
    }


def join_outputs(parts: Sequence[Outputs]) -> Outputs:
    """Concatenates the outputs of parts of a batch."""
    if len(parts) == 1:
        return parts[0]
    boxes, scores, count = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return boxes, scores, count


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


def check_outputs(outputs: Sequence[npt.NDArray[np.generic]], num_frames: int, num_proposals: int) -> None:
    """Checks the outputs of a graph for `num_frames` frames.

    Raises:
        InferenceError: A shape or a count breaks the interface.
    """
    boxes, scores, count = outputs
    expected = ((num_frames, num_proposals, 4), (num_frames, num_proposals), (num_frames,))
    found = (boxes.shape, scores.shape, count.shape)
    if found != expected:
        raise InferenceError(
            f"the graph's outputs have the shapes {found}, expected {expected}; export the model again"
        )
    if count.min() < 0 or count.max() > num_proposals:
        raise InferenceError(f"the graph counts {count.tolist()} proposals, expected 0 to {num_proposals}")
