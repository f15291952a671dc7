"""Made-up data for the demo: a small detection set in COCO form, and a video of moving objects.

The same seed gives the same files, byte for byte, as long as NumPy and OpenCV stay the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edgerpn import files
from edgerpn.demo.synthetic.scene import (
    MIN_SIZE_PX,
    Sprite,
    Visible,
    draw_background,
    draw_sprite,
    largest_px,
    log_uniform,
    paste,
    render_scene,
    visible_objects,
)
from edgerpn.errors import SinkError
from edgerpn.machine import available_cores
from edgerpn.progress import track

_TRAIN, _VAL, _VIDEO = range(3)
"""Separate streams of random numbers, so that the size of one part does not change another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticVideo:
    """A video file and its ground truth."""

    path: Path
    fps: float
    hw: tuple[int, int]
    """Height and width of the frames, pixels."""
    boxes_xyxy: tuple[npt.NDArray[np.float32], ...]
    """Of each frame, (M, 4) pixel edges."""


def write_dataset(
    folder: str | os.PathLike[str],
    *,
    num_train: int = 360,
    num_val: int = 60,
    hw: tuple[int, int] = (384, 640),
    seed: int = 0,
) -> None:
    """Writes a detection set: `train.json` and `val.json` (COCO) and `images/*.jpg`.

    Boxes are tight around the visible part of each object; an object of which less than a quarter is visible has none.

    Args:
        folder: Made when missing; files of the same names are replaced.
        num_train: Images to train on.
        num_val: Images to measure on.
        hw: Height and width of the images, pixels.
        seed: Fixes every byte.
    """
    folder = Path(folder)
    for stream, split, count in ((_TRAIN, "train", num_train), (_VAL, "val", num_val)):
        write = partial(_write_image, folder, split, hw, (seed, stream))
        # Threads, because NumPy and OpenCV do their work outside the interpreter's lock; each image has its own seed.
        with ThreadPoolExecutor(min(8, available_cores())) as pool:
            written = list(track(pool.map(write, range(count)), f"drawing {split} images", total=count, unit="image"))
        images = [image for image, _ in written]
        files.write_text(folder / f"{split}.json", _coco_text(images, [box for _, boxes in written for box in boxes]))


def write_video(
    path: str | os.PathLike[str],
    *,
    num_frames: int = 150,
    fps: float = 25.0,
    hw: tuple[int, int] = (720, 1280),
    seed: int = 0,
    num_objects: int = 16,
    annotations: str | os.PathLike[str] | None = None,
) -> SyntheticVideo:
    """Writes an MP4 (MPEG-4 part 2) of objects that move, turn and change size over a background that pans.

    Args:
        path: The video file.
        num_frames: Length in frames.
        fps: Frames per second.
        hw: Height and width of the frames, pixels.
        seed: Fixes the frames.
        num_objects: Objects in the video; not all are in view all the time.
        annotations: Also writes the ground truth as COCO JSON here, image id and file name by frame index.

    Raises:
        SinkError: OpenCV cannot write the video.
    """
    path = Path(path)
    objects = []
    with files.replacing(path) as temporary, files.native_path(temporary) as native:
        writer = cv2.VideoWriter(native, cv2.VideoWriter.fourcc(*"mp4v"), fps, (hw[1], hw[0]))
        if not writer.isOpened():
            raise SinkError(f"{path}: OpenCV cannot write MPEG-4 video here; install a build of OpenCV with FFmpeg")
        try:
            frames = _frames(np.random.default_rng([seed, _VIDEO]), num_frames, fps, hw, num_objects)
            for frame, visible in track(frames, "drawing video", total=num_frames, unit="frame"):
                writer.write(frame)
                objects.append(visible)
        finally:
            writer.release()
    if annotations is not None:
        images = [_image_record(index, f"{index:06d}", hw) for index in range(num_frames)]
        records = [_box_record(index, item) for index, visible in enumerate(objects) for item in visible]
        files.write_text(annotations, _coco_text(images, records))
    boxes = [np.array([item.box_xyxy for item in visible], np.float32).reshape(-1, 4) for visible in objects]
    return SyntheticVideo(path=path, fps=fps, hw=hw, boxes_xyxy=tuple(boxes))


def _write_image(
    folder: Path, split: str, hw: tuple[int, int], seed: tuple[int, int], index: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draws and writes one image; returns its COCO record and those of its boxes, without their ids."""
    rng = np.random.default_rng([*seed, index])
    scene = render_scene(rng, hw)
    image_id, name = index + 1, f"{split}_{index:05d}.jpg"
    _, encoded = cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(45, 96))])
    files.write_bytes(folder / "images" / name, encoded.tobytes())
    return _image_record(image_id, name, hw), [_box_record(image_id, item) for item in scene.objects]


def _image_record(image_id: int, name: str, hw: tuple[int, int]) -> dict[str, Any]:
    return {"id": image_id, "file_name": name, "width": hw[1], "height": hw[0]}


def _box_record(image_id: int, item: Visible) -> dict[str, Any]:
    """A COCO annotation without its id."""
    x1, y1, x2, y2 = item.box_xyxy
    box_xywh = [x1, y1, x2 - x1, y2 - y1]
    return {"image_id": image_id, "category_id": 1, "bbox": box_xywh, "area": item.area_px, "iscrowd": 0}


def _coco_text(images: list[dict[str, Any]], boxes: list[dict[str, Any]]) -> str:
    annotations = [{"id": number, **box} for number, box in enumerate(boxes, start=1)]
    return json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Actor:
    """A sprite and its movement through the video: waves of x, y, angle and scale."""

    sprite: Sprite
    """At its largest."""
    middle: npt.NDArray[np.float64]
    """x and y in pixels, angle in radians, scale."""
    swing: npt.NDArray[np.float64]
    """Amplitudes of the four."""
    cycles: npt.NDArray[np.float64]
    """Waves per second of the four."""
    phase: npt.NDArray[np.float64]
    """Start of the four, radians."""
    parallax: float
    """1 rests on the background, 0 moves with the camera."""

    def draw(
        self, canvas: npt.NDArray[np.float32], owners: npt.NDArray[np.int16], number: int, time_s: float, camera_xy: Any
    ) -> int:
        """Pastes the actor as it is at `time_s`, in place; returns the pixels that it would cover if nothing hid it."""
        pose = self.middle + self.swing * np.sin(2 * np.pi * self.cycles * time_s + self.phase)
        x, y = pose[:2] - self.parallax * camera_xy
        sprite, left_top = transform(self.sprite, scale=pose[3], angle=pose[2], center_xy=(x, y))
        return paste(canvas, owners, sprite, left_top=left_top, number=number)


def transform(
    sprite: Sprite, *, scale: float, angle: float, center_xy: tuple[float, float]
) -> tuple[Sprite, tuple[int, int]]:
    """Scales and turns a sprite about its middle and moves that to `center_xy` on the canvas.

    Returns:
        The new sprite and the canvas position of its top left pixel.
    """
    height, width = sprite.shape[:2]
    side = int(np.ceil(scale * np.hypot(height, width))) + 4
    left, top = int(center_xy[0] - side / 2), int(center_xy[1] - side / 2)
    # OpenCV counts pixel centres from 0, hence the halves; its angles are in degrees and counterclockwise.
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -np.degrees(angle), scale)
    matrix[:, 2] += np.array(center_xy) - 0.5 - (left, top) - ((width - 1) / 2, (height - 1) / 2)
    return np.asarray(cv2.warpAffine(sprite, matrix, (side, side), flags=cv2.INTER_LINEAR), np.float32), (left, top)


def _frames(
    rng: np.random.Generator, num_frames: int, fps: float, hw: tuple[int, int], num_objects: int
) -> Iterator[tuple[npt.NDArray[np.uint8], list[Visible]]]:
    """Draws each frame with its visible objects."""
    pan_px = np.array([0.18 * hw[1], 0.08 * hw[0]])
    margin = np.ceil(pan_px).astype(int) + 1
    world = draw_background(rng, (hw[0] + 2 * int(margin[1]), hw[1] + 2 * int(margin[0])))
    # Places that fill the frame evenly: the R2 sequence (Roberts 2018) from a random start.
    places = (rng.random(2) + np.arange(num_objects)[:, None] * [0.7548776662, 0.5698402910]) % 1
    # Large objects lie below small ones, which they would hide otherwise.
    actors = sorted((_draw_actor(rng, hw, place) for place in places), key=lambda actor: -actor.sprite.size)
    grain = rng.normal(0, 3, (hw[0] + 64, hw[1] + 64, 1)).repeat(3, axis=2).round().astype(np.int8)
    cycles, phase = rng.uniform(0.04, 0.09, 2), rng.uniform(0, 2 * np.pi, 2)
    for index in range(num_frames):
        camera_xy = pan_px * np.sin(2 * np.pi * cycles * index / fps + phase)
        center_xy = (np.array([hw[1], hw[0]]) - 1) / 2 + margin + camera_xy
        canvas = np.asarray(cv2.getRectSubPix(world, (hw[1], hw[0]), tuple(center_xy)), np.float32)
        owners = np.zeros(hw, np.int16)
        areas_px = {i: actor.draw(canvas, owners, i, index / fps, camera_xy) for i, actor in enumerate(actors, start=1)}
        dx, dy = rng.integers(0, 64, 2)
        frame = cv2.add(canvas, grain[dy : dy + hw[0], dx : dx + hw[1]], dtype=cv2.CV_8U)
        yield np.asarray(frame, np.uint8), visible_objects(owners, areas_px)


def _draw_actor(rng: np.random.Generator, hw: tuple[int, int], place: npt.NDArray[np.float64]) -> _Actor:
    """Draws an object that rests on the background, swings, or crosses the frame; `place` is in parts of the frame."""
    size_px = log_uniform(rng, 2.5 * MIN_SIZE_PX, largest_px(hw))
    limits_px, angle = (0.6 * hw[1], 0.8 * hw[0]), rng.normal(0, 0.5)
    x, y = (0.08 + 0.84 * place) * (hw[1], hw[0])
    reach_x, reach_y = rng.choice([0.12, 0.3, 0.6], p=[0.4, 0.4, 0.2]) * rng.uniform(0.4, 1, 2) * (hw[1], 0.7 * hw[0])
    shrink, is_resting = rng.uniform(0.02, 0.25), rng.random() < 0.25
    return _Actor(
        sprite=draw_sprite(int(rng.integers(2**32)), size_px=size_px, angle=angle, max_wh_px=limits_px),
        middle=np.array([x, y, 0, 1 - shrink]),
        swing=np.array([reach_x, reach_y, rng.uniform(0, 1.2), shrink]) * (not is_resting),
        cycles=rng.uniform(0.05, 0.2, 4),
        phase=rng.uniform(0, 2 * np.pi, 4),
        parallax=1.0 if is_resting else rng.uniform(0, 1),
    )
