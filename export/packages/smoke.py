"""Runs the model of this folder on its golden frames, and compares the proposals with those that are expected.

    python smoke.py
    python smoke.py CUDAExecutionProvider

The argument is a provider of ONNX Runtime; it and NumPy are all that this file needs. The exit status is 0 when the
proposals are those that the model gave when it was exported, up to rounding.

`smoke.json` names the graph, optimizers of ONNX Runtime that would make it coarser, and the allowed differences.
`smoke.npz` holds frames (F, H, W, 3) uint8 BGR, boxes (F, K, 4) in pixels of the frames, scores (F, K) and count (F,),
as they are expected.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def check(folder: Path, provider: str = "CPUExecutionProvider") -> list[str]:
    """Runs the graph of a bundle; returns a line for each frame that has other proposals than expected."""
    import onnxruntime

    settings = json.loads((folder / "smoke.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(
        folder / settings["graph"], providers=[provider], disabled_optimizers=settings["disabled_optimizers"]
    )
    problems = []
    with np.load(folder / "smoke.npz", allow_pickle=False) as arrays:
        for number, frame in enumerate(arrays["frames"]):
            count = arrays["count"][number]
            expected = arrays["boxes"][number, :count], arrays["scores"][number, :count]
            most, found = run(session, frame)
            pairs = count_pairs(expected, found, settings)
            wanted = max(min(int(count), most), len(found[1]))
            if wanted - pairs > settings["max_unmatched_share"] * wanted:
                problems.append(f"frame {number}: {wanted - pairs} of {wanted} proposals have no counterpart")
    return problems


def run(session: Any, frame: np.ndarray) -> tuple[int, tuple[np.ndarray, np.ndarray]]:
    """Runs one frame; returns the most proposals that the graph can give, and boxes (M, 4) and scores (M,)."""
    node = session.get_inputs()[0]
    if node.type == "tensor(float)":  # planes of B, G and R
        frame = frame.transpose(2, 0, 1).astype(np.float32)
    batch = node.shape[0] if isinstance(node.shape[0], int) else 1
    outputs = session.run(None, {node.name: np.repeat(frame[None], batch, axis=0)})
    if len(outputs) == 1:  # rows of batch, x1, y1, x2, y2, score, class
        rows = outputs[0]
        found = rows[: int(np.argmax([*(rows[:, 6] < 0), True]))]
        return len(rows), (found[:, 1:5], found[:, 5])
    boxes, scores, count = outputs[0][0], outputs[1][0], int(outputs[2].flat[0])
    return len(scores), (boxes[:count], scores[:count])


def count_pairs(
    expected: tuple[np.ndarray, np.ndarray], found: tuple[np.ndarray, np.ndarray], limits: dict[str, float]
) -> int:
    """Pairs proposals one to one, largest overlap first; returns the number of pairs within the limits."""
    a, b = expected[0].astype(np.float64)[:, None], found[0].astype(np.float64)[None]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    shared = sides.prod(axis=-1)
    areas = (a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1)
    iou = shared / np.maximum(areas - shared, 1e-12)
    iou[np.abs(expected[1][:, None] - found[1][None]) > limits["max_score_difference"]] = 0
    pairs = 0
    while iou.size and iou.max() >= limits["min_iou"]:
        row, column = np.unravel_index(iou.argmax(), iou.shape)
        iou[row], iou[:, column] = 0, 0
        pairs += 1
    return pairs


def main() -> int:
    """Checks the folder of this file; returns the exit status."""
    problems = check(Path(__file__).resolve().parent, *sys.argv[1:2])
    sys.stdout.writelines(f"{line}\n" for line in problems or ["the golden frames gave the expected proposals"])
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
