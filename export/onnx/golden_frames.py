"""Making golden frames: which of the photographs, and what a model gives for them; see `edgerpn.golden`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgerpn.golden import Golden
from edgerpn.matching import TOLERANCES, match
from edgerpn.runtime.backends.contract import Outputs

NUM_FRAMES = 2
"""Frames kept."""

Infer = Callable[[np.ndarray], Outputs]
"""Frames (N, H, W, 3) uint8 to boxes (N, K, 4), scores (N, K), count (N,); `Backend.infer` fits."""


def make_golden(infer: Infer, frames: Sequence[np.ndarray]) -> Golden:
    """Chooses the frames that tell a working machine from a broken one best, and runs them.

    A self-test must not fail for rounding. Each frame is therefore run as it is and one grey level brighter, and those
    are kept whose proposals change least; frames with less than half the proposals of the richest one are no test.

    Args:
        infer: Runs the model, one frame at a time.
        frames: Photographs, each (H, W, 3) uint8 BGR laid into the graph's input; at least one.

    Raises:
        ValueError: There are no frames.
    """
    if not frames:
        raise ValueError("frames: expected at least one, got none")
    outputs = [infer(frame[None]) for frame in frames]
    counts = [int(output[2][0]) for output in outputs]
    changes = [_change(infer, frame, output) for frame, output in zip(frames, outputs, strict=True)]
    rich = [index for index, count in enumerate(counts) if 2 * count >= max(counts)]
    # The order of the photographs decides between equals, and is kept.
    chosen = sorted(sorted(rich, key=lambda index: (changes[index], -counts[index]))[:NUM_FRAMES])
    boxes, scores, count = (np.concatenate(arrays) for arrays in zip(*(outputs[i] for i in chosen), strict=True))
    return Golden(frames=np.stack([frames[i] for i in chosen]), boxes=boxes, scores=scores, count=count)


def _change(infer: Infer, frame: np.ndarray, output: Outputs) -> float:
    """Share of proposals, 0..1, without a counterpart when every pixel is one grey level brighter."""
    brighter = np.minimum(frame, 254) + np.uint8(1)
    before, after = (
        (boxes[0, : int(count[0])], scores[0, : int(count[0])])
        for boxes, scores, count in (output, infer(brighter[None]))
    )
    largest = max(len(before[1]), len(after[1]))
    pairs, _ = match(before, after, TOLERANCES["fp16"])
    return (largest - len(pairs)) / largest if largest else 0.0
