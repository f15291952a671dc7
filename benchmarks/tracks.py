"""Tracks of made-up objects, scored by a library: HOTA, IDF1, and ids beside those of another ByteTrack.

    python -m benchmarks.tracks [--seeds 5]

Needs the package trackers, whose NumPy and OpenCV are not those of a device: an environment of its own with
`pip install trackers` and `pip install --no-deps .`. Its metrics are those of TrackEval, its ByteTrack the reference.

A scene has 12 boxes that wander through 1280x720 pixels for 30 s at 25 frames a second, pass each other and hide each
other. What the trackers see are proposals: each box with noise and three near copies, weaker when it is partly hidden,
absent when it is hidden, and in 5 % of the frames for no reason; and ten proposals of nothing, which flicker. Every
tracker gets the same ones. Frames are all there, or 70 % are dropped at random, or a second in five is missing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgerpn.proposals import Proposals
from edgerpn.runtime.tracking.config import TrackConfig
from edgerpn.runtime.tracking.tracker import Moment, Tracker

SIZE_WH = (1280, 720)
FPS = 25
NUM_FRAMES = 30 * FPS
NUM_OBJECTS = 12
CONFIG = TrackConfig()

Boxes = npt.NDArray[np.float64]
Follow = Callable[[Proposals, float], "list[int | None]"]
"""From proposals and seconds to the number of each proposal's confirmed track."""


class Shown(NamedTuple):
    """A frame that a tracker sees."""

    time_s: float
    truth: Boxes
    """(NUM_OBJECTS, 4) float64."""
    is_visible: npt.NDArray[np.bool_]
    """(NUM_OBJECTS,)."""
    proposals: Proposals


def make_scene(seed: int) -> list[Shown]:
    """Returns all frames of a scene."""
    rng = np.random.default_rng(seed)
    frames = []
    for index, truth in enumerate(wander(rng, sizes_px=(40, 140))):
        hidden = hidden_shares(truth)
        frames.append(Shown(index / FPS, truth, hidden < 0.7, _propose(rng, truth, hidden)))
    return frames


def wander(rng: np.random.Generator, *, sizes_px: tuple[float, float]) -> Iterator[Boxes]:
    """Yields the boxes (NUM_OBJECTS, 4) of each frame; `sizes_px` is the range of their sides."""
    sizes = rng.uniform(*sizes_px, (NUM_OBJECTS, 2))
    limits = np.array(SIZE_WH) - sizes
    places = rng.uniform(0, 1, (NUM_OBJECTS, 2)) * limits
    speeds = rng.normal(0, 120, (NUM_OBJECTS, 2))
    for _ in range(NUM_FRAMES):
        # Drawn to the middle, so that they turn and do not bounce.
        speeds += rng.normal(0, 60, speeds.shape) / np.sqrt(FPS) - (0.5 * (places - limits / 2) + 0.1 * speeds) / FPS
        places = np.clip(places + speeds / FPS, 0, limits)
        yield np.concatenate([places, places + sizes], axis=1)


def hidden_shares(boxes: Boxes) -> Boxes:
    """Returns the largest share of each box that a box in front of it, one of a higher row, hides."""
    corners = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    shares = np.clip(corners, 0, None).prod(axis=2) / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)[:, None]
    return np.triu(shares, 1).max(axis=1)


def _propose(rng: np.random.Generator, truth: Boxes, hidden: Boxes) -> Proposals:
    is_there = (hidden < 0.7) & (rng.random(NUM_OBJECTS) > 0.05)
    seen = np.repeat(truth[is_there], 4, axis=0)
    sizes = np.tile(seen[:, 2:] - seen[:, :2], 2)
    boxes = seen + rng.normal(0, 0.04, seen.shape) * sizes
    first = np.repeat(0.75 - 0.5 * hidden[is_there], 4) + rng.normal(0, 0.06, len(seen))
    scores = first * np.tile([1, 0.6, 0.5, 0.4], is_there.sum())
    corners = rng.uniform(0, 1, (10, 2)) * np.array(SIZE_WH)
    nothing = np.concatenate([corners, corners + rng.uniform(30, 150, (10, 2))], axis=1)
    boxes, scores = np.concatenate([boxes, nothing]), np.concatenate([scores, rng.uniform(0.1, 0.5, 10)])
    order = np.argsort(-scores)
    return Proposals(boxes[order].astype(np.float32), np.clip(scores[order], 0, 1).astype(np.float32))


def all_frames(frames: list[Shown], seed: int) -> list[Shown]:
    return frames


def dropped_frames(frames: list[Shown], seed: int) -> list[Shown]:
    rng = np.random.default_rng(seed)
    return [frame for frame in frames if rng.random() > 0.7]


def gaps(frames: list[Shown], seed: int) -> list[Shown]:
    return [frame for frame in frames if frame.time_s % 5 < 4]


def ours(rate_hz: float = 0.0, config: TrackConfig = CONFIG) -> Follow:
    """Returns our tracker; with a rate it counts frames instead of looking at the clock."""
    tracker, count = Tracker(config), iter(range(NUM_FRAMES))

    def follow(proposals: Proposals, time_s: float) -> list[int | None]:
        shown_s = next(count) / rate_hz if rate_hz else time_s
        tracks, _ = tracker.follow(proposals, Moment(shown_s, 0, 0.0))
        return [track.track_id if track is not None and track.is_confirmed else None for track in tracks]

    return follow


def theirs(*, has_times: bool) -> Follow:
    """Returns the ByteTrack of the package trackers, with our settings, on the proposals that ours looks at."""
    import supervision
    from trackers import ByteTrackTracker

    tracker = ByteTrackTracker(
        lost_track_buffer=round(CONFIG.buffer_s * 30),
        frame_rate=FPS,
        track_activation_threshold=CONFIG.high_score,
        minimum_consecutive_frames=CONFIG.confirm_frames,
        minimum_iou_threshold=CONFIG.min_iou,
        high_conf_det_threshold=CONFIG.high_score,
    )

    def follow(proposals: Proposals, time_s: float) -> list[int | None]:
        kept = proposals.nms_rows(CONFIG.nms_iou, limit=CONFIG.top, by_class=False)
        rows = [row for row in kept if proposals.scores[row] >= CONFIG.low_score]
        given = supervision.Detections(
            xyxy=proposals.boxes[rows].copy(), confidence=proposals.scores[rows].copy(), data={"row": np.array(rows)}
        )
        found = tracker.update(given, timestamp=time_s) if has_times else tracker.update(given)
        ids: list[int | None] = [None] * len(proposals)
        for row, number in zip(found.data.get("row", ()), found.tracker_id, strict=True):
            ids[int(row)] = int(number) + 1 if number >= 0 else None
        return ids

    return follow


def have_equal_ids(frames: list[Shown], first: Follow, second: Follow) -> bool:
    """Returns whether two trackers give the same proposals the same numbers, up to their names."""
    pairs = {
        pair
        for frame in frames
        for pair in zip(first(frame.proposals, frame.time_s), second(frame.proposals, frame.time_s), strict=True)
    }
    return len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs})


def passing_objects() -> Iterator[Shown]:
    """Yields a sequence without chance: three objects that pass each other, one of them weak at times or gone."""
    for index in range(4 * FPS):
        time_s = index / FPS
        places = np.array([[80 * time_s, 50], [400 - 90 * time_s, 80], [200, 300 - 50 * time_s]])
        truth = np.concatenate([places, places + np.array([60, 50])], axis=1)
        scores = np.array([0.9, 0.8, 0.3 if index % 20 in (10, 11) else 0.6])
        is_there = np.array([True, True, not 50 <= index < 62])
        yield Shown(
            time_s, truth, is_there, Proposals(*(array[is_there].astype(np.float32) for array in (truth, scores)))
        )


def score(frames: list[Shown], follow: Follow) -> tuple[list[float], float]:
    """Returns HOTA, AssA, IDF1 in percent, identity switches and tracks; and milliseconds for each frame."""
    from trackers.eval import evaluate_mot_sequence

    truth, found, ids, busy_s = [], [], set(), 0.0
    for number, frame in enumerate(frames, 1):
        # The benchmark's class of objects that count is 1.
        truth += [_line(number, i + 1, frame.truth[i], "1,1,1") for i in np.flatnonzero(frame.is_visible).tolist()]
        start_s = time.perf_counter()
        tracks = follow(frame.proposals, frame.time_s)
        busy_s += time.perf_counter() - start_s
        for row, track in enumerate(tracks):
            if track is not None:
                ids.add(track)
                found.append(_line(number, track, frame.proposals.boxes[row], "1,-1,-1,-1"))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("truth.txt", "found.txt")]
        for path, lines in zip(paths, (truth, found), strict=True):
            path.write_text("".join(lines))
        result = evaluate_mot_sequence(*paths, metrics=["CLEAR", "HOTA", "Identity"])
    shares = [result.HOTA.HOTA, result.HOTA.AssA, result.Identity.IDF1]
    return [*(100 * share for share in shares), result.CLEAR.IDSW, len(ids)], 1e3 * busy_s / len(frames)


def _line(number: int, track: int, box: npt.NDArray[np.floating], rest: str) -> str:
    x1, y1, x2, y2 = box.tolist()
    return f"{number},{track},{x1 + 1:.2f},{y1 + 1:.2f},{x2 - x1:.2f},{y2 - y1:.2f},{rest}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Scores tracks of made-up objects.")
    parser.add_argument("--seeds", type=int, default=5, help="scenes (5)")
    seeds = range(parser.parse_args().seeds)
    same = have_equal_ids(list(passing_objects()), ours(), theirs(has_times=False))
    print(f"ids of a sequence without chance equal those of trackers' ByteTrack: {'yes' if same else 'NO'}\n")
    methods: dict[str, Callable[[], Follow]] = {
        "ours": ours,
        "ours, counting frames": lambda: ours(FPS),
        "trackers' ByteTrack": lambda: theirs(has_times=False),
        "trackers' ByteTrack with times": lambda: theirs(has_times=True),
    }
    print("| frames | tracker | HOTA | AssA | IDF1 | switches | tracks of 12 | ms a frame |")
    print("|---|---|---|---|---|---|---|---|")
    for choose in (all_frames, dropped_frames, gaps):
        scenes = [choose(make_scene(seed), seed) for seed in seeds]
        for name, method in methods.items():
            rows = [score(frames, method()) for frames in scenes]
            cells = [f"{value:.1f}" for value in np.mean([row for row, _ in rows], axis=0)]
            took_ms = np.median([ms for _, ms in rows])
            print(f"| {choose.__name__.replace('_', ' ')} | {name} | {' | '.join(cells)} | {took_ms:.1f} |", flush=True)


if __name__ == "__main__":
    main()
