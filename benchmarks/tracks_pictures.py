"""Tracks of photographed objects, with and without the help of embeddings, scored by a library.

    edgerpn export general --embeddings --images PHOTOS -o model.onnx
    python -m benchmarks.tracks_pictures model.onnx DATA [--seeds 1]

Needs the environment of `benchmarks.tracks`, with onnxruntime. DATA is a folder with train.json, as COCO has it.

A scene has 12 objects of DATA, cut out as ellipses, that wander before one photograph as in `benchmarks.tracks`, and
hide each other. The proposals are those of the model. Frames are all there, or 70 % are dropped at random, or a second
in five is missing; or every object is away for 1.5 s, now and then, behind nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from benchmarks.tracks import (
    FPS,
    NUM_OBJECTS,
    SIZE_WH,
    Boxes,
    Shown,
    all_frames,
    dropped_frames,
    gaps,
    hidden_shares,
    ours,
    score,
    wander,
)
from edgerpn.runtime import Model, load
from edgerpn.runtime.tracking.config import TrackConfig

Picture = npt.NDArray[np.uint8]
SMALLEST_PX = 60
SIDES_PX = (80, 200)
AWAY_S, EVERY_S = 1.5, 6.0
SIMILARITIES = (1.0, 0.01, 0.3, 0.4, 0.5, 0.6)
"""1: without embeddings; 0.01: hardly more than place and size count."""


def cut_objects(data: Path, rng: np.random.Generator) -> tuple[list[Picture], Picture]:
    """Returns NUM_OBJECTS pictures of objects, each of another image, and a photograph without them."""
    listing = json.loads((data / "train.json").read_text())
    names = {image["id"]: image["file_name"] for image in listing["images"]}
    rows = [row for row in listing["annotations"] if min(row["bbox"][2:]) > SMALLEST_PX]
    large: dict[int, list[float]] = {row["image_id"]: row["bbox"] for row in rows}
    chosen = rng.choice(sorted(large), NUM_OBJECTS + 1, replace=False).tolist()
    pictures = [cv2.imread(str(data / names[number])) for number in chosen]
    crops = []
    for number, picture in zip(chosen[1:], pictures[1:], strict=True):
        x, y, width, height = (round(value) for value in large[number])
        crops.append(picture[y : y + height, x : x + width])
    return crops, cv2.resize(pictures[0], SIZE_WH)


def paint(crops: list[Picture], ground: Picture, truth: Boxes, is_there: npt.NDArray[np.bool_]) -> Picture:
    """Returns the frame with every object that is there, higher rows in front."""
    frame = ground.copy()
    for row in np.flatnonzero(is_there).tolist():
        x1, y1, x2, y2 = truth[row].round().astype(int).tolist()
        size_wh = (x2 - x1, y2 - y1)
        mask = np.zeros((size_wh[1], size_wh[0], 1), np.uint8)
        cv2.ellipse(mask, ((size_wh[0] / 2, size_wh[1] / 2), size_wh, 0.0), 255, -1)
        part = frame[y1:y2, x1:x2]
        np.copyto(part, cv2.resize(crops[row], size_wh, interpolation=cv2.INTER_AREA), where=mask > 0)
    return frame


def film(model: Model, data: Path, seed: int, *, goes_away: bool) -> list[Shown]:
    """Returns all frames of a scene; with `goes_away` every object is gone for AWAY_S of EVERY_S seconds."""
    rng = np.random.default_rng(seed)
    crops, ground = cut_objects(data, rng)
    starts_s = rng.uniform(0, EVERY_S, NUM_OBJECTS)
    frames = []
    for index, truth in enumerate(wander(rng, sizes_px=SIDES_PX)):
        time_s = index / FPS
        is_there = (time_s + starts_s) % EVERY_S >= (AWAY_S if goes_away else 0)
        # An object that is away hides nothing.
        hidden = hidden_shares(np.where(is_there[:, None], truth, truth + 1e6))
        proposals = model(paint(crops, ground, truth, is_there))
        frames.append(Shown(time_s, truth, is_there & (hidden < 0.7), proposals))
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(description="Scores tracks of photographed objects, with and without embeddings.")
    parser.add_argument("model", help="model with embeddings")
    parser.add_argument("data", type=Path, nargs="+", help="folders with train.json")
    parser.add_argument("--seeds", type=int, default=1, help="scenes of each folder (1)")
    arguments = parser.parse_args()
    print("| scenes | frames | min_similarity | HOTA | AssA | IDF1 | switches | tracks of 12 |")
    print("|---|---|---|---|---|---|---|---|")
    with load(arguments.model) as model:
        for goes_away in (False, True):
            films = [
                (film(model, data, seed, goes_away=goes_away), seed)
                for data in arguments.data
                for seed in range(arguments.seeds)
            ]
            scenes = "objects go away" if goes_away else "objects stay"
            for choose, least in itertools.product((all_frames, dropped_frames, gaps), SIMILARITIES):
                config = TrackConfig(min_similarity=least)
                found = [score(choose(frames, seed), ours(config=config))[0] for frames, seed in films]
                cells = " | ".join(f"{value:.1f}" for value in np.mean(found, axis=0))
                print(f"| {scenes} | {choose.__name__.replace('_', ' ')} | {least:g} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
