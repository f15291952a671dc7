"""Runs the model of this folder on its golden frames, and compares the proposals with those that are expected.

    python smoke.py
    python smoke.py CUDAExecutionProvider

The argument is a provider of ONNX Runtime; it and NumPy are all that this file needs. The exit status is 0 when the
proposals are those that the model gave when it was exported, up to rounding.

`smoke.json` names the graph, its outputs, optimizers of ONNX Runtime that would make it coarser, and the allowed
differences. `smoke.npz` holds frames (F, H, W, 3) uint8 BGR, boxes (F, K, 4) in pixels of the frames, scores (F, K) and
count (F,), as they are expected; with classes also labels (F, K), and class_scores (F, K) where the graph gives them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def check(folder: Path, provider: str = "CPUExecutionProvider") -> list[str]:
    """Runs the graph of a bundle; returns a line for each frame that has other proposals than expected.

    Frames without any expected proposal are a line too.
    """
    import onnxruntime

    settings = json.loads((folder / "smoke.json").read_text(encoding="utf-8"))
    session = onnxruntime.InferenceSession(
        folder / settings["graph"], providers=[provider], disabled_optimizers=settings["disabled_optimizers"]
    )
    problems = []
    with np.load(folder / "smoke.npz", allow_pickle=False) as arrays:
        if not arrays["count"].any():
            return ["none of the golden frames has a proposal, so that nothing can be compared; export the model again"]
        for number, frame in enumerate(arrays["frames"]):
            found, most = run(session, frame, settings["outputs"])
            problem = compare(expected_of(arrays, number), found, settings, most)
            if problem:
                problems.append(f"frame {number}: {problem}")
    return problems


def expected_of(arrays: Mapping[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    """Returns the proposals that are expected for a frame, an array for each output."""
    count = int(arrays["count"][number])
    return {name: arrays[name][number, :count] for name in arrays if name not in ("frames", "count")}


def run(session: Any, frame: np.ndarray, names: Mapping[str, str]) -> tuple[dict[str, np.ndarray], int]:
    """Runs one frame; returns its proposals, an array for each output, and the most that the graph can give.

    `names` has the graph's names of boxes, scores, count and, with classes, labels and class_scores; or of rows alone.
    """
    node = session.get_inputs()[0]
    if node.type == "tensor(float)":  # planes of B, G and R
        frame = frame.transpose(2, 0, 1).astype(np.float32)
    batch = node.shape[0] if isinstance(node.shape[0], int) else 1
    outputs = session.run([*names.values()], {node.name: np.repeat(frame[None], batch, axis=0)})
    found = dict(zip(names, outputs, strict=True))
    if "rows" in found:  # rows of batch, x1, y1, x2, y2, score, class
        rows, num_rows = found["rows"], len(found["rows"])
        rows = rows[: int(np.argmax([*(rows[:, 6] < 0), True]))]
        return {"boxes": rows[:, 1:5], "scores": rows[:, 5], "labels": rows[:, 6]}, num_rows
    count = int(found.pop("count").flat[0])
    return {name: array[0, :count] for name, array in found.items()}, len(found["scores"][0])


def compare(
    expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], limits: Mapping[str, float], most: int
) -> str | None:
    """Compares the proposals of a frame, `most` at most; returns the first difference that too many have, or None."""
    pairs = pair(expected, found, limits)
    wanted = max(min(len(expected["scores"]), most), len(found["scores"]))
    missing = wanted - len(pairs)
    if missing > limits["max_unmatched_share"] * wanted:
        return f"{missing} of {wanted} proposals have no counterpart"
    rows, columns = np.array(pairs, np.intp).reshape(-1, 2).T
    for name, limit in (("labels", 0.0), ("class_scores", limits["max_score_difference"])):
        if name in expected:
            num_other = int((np.abs(expected[name][rows] - found[name][columns]) > limit).sum())
            if num_other > limits["max_unmatched_share"] * len(pairs):
                return f"{num_other} of {len(pairs)} proposals have other {name}"
    return None


def pair(
    expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], limits: Mapping[str, float]
) -> list[tuple[int, int]]:
    """Pairs proposals within the limits of boxes and scores, largest overlap first; returns their rows."""
    a, b = expected["boxes"].astype(np.float64)[:, None], found["boxes"].astype(np.float64)[None]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    shared = sides.prod(axis=-1)
    areas = (a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1)
    iou = shared / np.maximum(areas - shared, 1e-12)
    iou[np.abs(expected["scores"][:, None] - found["scores"][None]) > limits["max_score_difference"]] = 0
    pairs = []
    while iou.size and iou.max() >= limits["min_iou"]:
        row, column = np.unravel_index(iou.argmax(), iou.shape)
        iou[row], iou[:, column] = 0, 0
        pairs.append((int(row), int(column)))
    return pairs


def main() -> int:
    """Checks the folder of this file; returns the exit status."""
    problems = check(Path(__file__).resolve().parent, *sys.argv[1:2])
    sys.stdout.writelines(f"{line}\n" for line in problems or ["the golden frames gave the expected proposals"])
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
