"""What an inference backend is; `edgerpn.runtime.backends.open_backend` says which one runs which file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgerpn.errors import InferenceError, InputError
from edgerpn.manifest import Manifest

Outputs = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int32]]
"""boxes (N, K, 4), scores (N, K), count (N,): the graph's interface, see `edgerpn.manifest`."""

Provider = str | tuple[str, Mapping[str, Any]]
"""An ONNX Runtime execution provider by name (cuda, CUDAExecutionProvider), alone or with its options."""


class Backend(Protocol):
    """Runs one artifact. `infer` may be called from several threads at once; `close` ends it for good."""

    @property
    def manifest(self) -> Manifest:
        """What the artifact is."""
        ...

    @property
    def name(self) -> str:
        """The library, its version and the device that really runs the graph, for people."""
        ...

    @property
    def is_cpu(self) -> bool:
        """Whether the graph runs on the CPU, so that threads of ours compete with it."""
        ...

    @property
    def frames_in_flight(self) -> int:
        """Callers of `infer` at the same time that make it faster than one, when frames do not come live."""
        ...

    def infer(self, frames: npt.NDArray[np.uint8]) -> Outputs:
        """Runs the graph.

        Args:
            frames: (N, H, W, 3) uint8 BGR with the manifest's `frame_hw`, any N.

        Returns:
            Boxes in pixels of `frames`, scores and counts; owned by the caller.

        Raises:
            InputError: `frames` is not what the manifest says.
            InferenceError: The library failed.
        """
        ...

    def close(self) -> None:
        """Frees the session; does nothing the second time."""
        ...


def check_frames(frames: object, manifest: Manifest) -> npt.NDArray[np.uint8]:
    """Returns `frames` as a C-contiguous array if it is what the manifest's graph eats.

    Raises:
        InputError: It is not a uint8 array of shape (N, H, W, 3) with the manifest's height and width.
    """
    height, width = manifest.input.frame_hw
    if not isinstance(frames, np.ndarray):
        raise InputError(f"frames: expected a NumPy array, got {type(frames).__name__}")
    if frames.dtype != np.uint8:
        raise InputError(f"frames: expected dtype uint8 (0..255, BGR, not normalised), got {frames.dtype}")
    if frames.ndim != 4 or frames.shape[1:] != (height, width, 3) or not len(frames):
        raise InputError(f"frames: expected shape (N, {height}, {width}, 3) with N >= 1, got {frames.shape}")
    return np.ascontiguousarray(frames)


def check_outputs(outputs: Sequence[npt.NDArray[np.generic]], num_frames: int, num_proposals: int) -> None:
    """Checks what a graph gave for `num_frames` frames.

    Raises:
        InferenceError: A shape or a count is not what the interface promises.
    """
    boxes, scores, count = outputs
    expected = ((num_frames, num_proposals, 4), (num_frames, num_proposals), (num_frames,))
    found = (boxes.shape, scores.shape, count.shape)
    if found != expected:
        raise InferenceError(f"the graph gave outputs of shapes {found}, expected {expected}; export the model again")
    if count.min() < 0 or count.max() > num_proposals:
        raise InferenceError(f"the graph counts {count.tolist()} proposals, expected 0 to {num_proposals}")
