"""Made-up data for the demo: a small detection set in COCO form, and a video of moving things.

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
from edgerpn.demo.synthetic.scene import MIN_SIZE_PX, draw_background, largest_px, log_uniform, render_scene
from edgerpn.demo.synthetic.sprites import (
    Light,
    Sprite,
    draw_light,
    draw_prototype,
    draw_sprite,
    paste,
    transform,
    visible_boxes,
)
from edgerpn.demo.synthetic.textures import FloatImage
from edgerpn.errors import SinkError
from edgerpn.machine import available_cores
from edgerpn.progress import track

_TRAIN, _VAL, _VIDEO = range(3)
"""Separate streams of chance, so that the size of one part does not change another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticDataset:
    """What `write_dataset` made."""

    folder: Path
    """Holds train.json, val.json and images/."""
    num_images: int
    """Images of both splits."""
    num_boxes: int
    """Boxes of both splits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticVideo:
    """What `write_video` made."""

    path: Path
    """The file."""
    fps: float
    """Frames per second."""
    hw: tuple[int, int]
    """Height and width of the frames, pixels."""
    boxes_xyxy: tuple[npt.NDArray[np.float32], ...]
    """Ground truth of each frame, (M, 4) pixel edges."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Actor:
    """A sprite and its way through the video."""

    sprite: Sprite
    """Drawn at its largest."""
    start_xy: npt.NDArray[np.float64]
    """Middle of its way, pixels."""
    swing_xy: npt.NDArray[np.float64]
    """Amplitude of its movement, pixels."""
    cycles: npt.NDArray[np.float64]
    """Turns per second of x, y, angle and scale."""
    phase: npt.NDArray[np.float64]
    """Start of each of them, radians."""
    tilt: float
    """Amplitude of the angle, radians."""
    min_scale: float
    """Smallest scale, 0..1."""
    parallax: float
    """1 rests on the background, 0 moves with the camera."""

    def pose(self, time_s: float, camera_xy: npt.NDArray[np.float64]) -> tuple[float, float, tuple[float, float]]:
        """Scale, angle and centre on the frame at a time."""
        wave = np.sin(2 * np.pi * self.cycles * time_s + self.phase)
        center = self.start_xy + self.swing_xy * wave[:2] - self.parallax * camera_xy
        scale = self.min_scale + (1 - self.min_scale) * (0.5 + 0.5 * float(wave[3]))
        return scale, self.tilt * float(wave[2]), (float(center[0]), float(center[1]))


def write_dataset(
    folder: str | os.PathLike[str],
    *,
    num_train: int = 360,
    num_val: int = 60,
    hw: tuple[int, int] = (384, 640),
    seed: int = 0,
) -> SyntheticDataset:
    """Writes a detection set: `train.json` and `val.json` (COCO) and `images/*.jpg`.

    Boxes are tight around the visible part of each object; an object of which less than a quarter can be seen has none.

    Args:
        folder: Made when missing; files of the same names are replaced.
        num_train: Images to train on.
        num_val: Images to measure on.
        hw: Height and width of the images, pixels.
        seed: Fixes every byte.
    """
    folder = Path(folder)
    num_boxes = 0
    for stream, split, count in ((_TRAIN, "train", num_train), (_VAL, "val", num_val)):
        write = partial(_write_image, folder, split, hw, (seed, stream))
        # Threads, because NumPy and OpenCV do their work outside the interpreter's lock; each image has its own seed.
        with ThreadPoolExecutor(min(8, available_cores())) as pool:
            written = list(track(pool.map(write, range(count)), f"drawing {split} images", total=count, unit="image"))
        images = [image for image, _ in written]
        boxes = [box for _, boxes_of_image in written for box in boxes_of_image]
        files.write_text(folder / f"{split}.json", _coco_text(images, boxes))
        num_boxes += len(boxes)
    return SyntheticDataset(folder=folder, num_images=num_train + num_val, num_boxes=num_boxes)


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
    """Writes an MP4 (MPEG-4 part 2) of things that move, turn and change size over a background that pans.

    Args:
        path: The video file.
        num_frames: Length in frames.
        fps: Frames per second.
        hw: Height and width of the frames, pixels.
        seed: Fixes the frames.
        num_objects: Things in the video; not all are in view all the time.
        annotations: Also writes the ground truth as COCO JSON here, image id and file name by frame index.

    Raises:
        SinkError: OpenCV cannot write the video.
    """
    path = Path(path)
    boxes = []
    with files.replacing(path) as temporary:
        writer = cv2.VideoWriter(os.fspath(temporary), cv2.VideoWriter.fourcc(*"mp4v"), fps, (hw[1], hw[0]))
        if not writer.isOpened():
            raise SinkError(f"{path}: OpenCV cannot write MPEG-4 video here; install a build of OpenCV with FFmpeg")
        try:
            frames = _frames(np.random.default_rng([seed, _VIDEO]), num_frames, fps, hw, num_objects)
            for frame, frame_boxes in track(frames, "drawing video", total=num_frames, unit="frame"):
                writer.write(frame)
                boxes.append(frame_boxes)
        finally:
            writer.release()
    if annotations is not None:
        files.write_text(annotations, _video_coco_text(boxes, hw))
    return SyntheticVideo(path=path, fps=fps, hw=hw, boxes_xyxy=tuple(boxes))


def _write_image(
    folder: Path, split: str, hw: tuple[int, int], seed: tuple[int, int], index: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draws and writes one image; returns its COCO record and those of its boxes, without their ids."""
    rng = np.random.default_rng([*seed, index])
    scene = render_scene(rng, hw)
    image_id, name = index + 1, f"{split}_{index:05d}.jpg"
    quality = int(rng.integers(45, 96))
    _, encoded = cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    files.write_bytes(folder / "images" / name, encoded.tobytes())
    boxes = [
        _box_record(image_id, box, int(area))
        for box, area in zip(scene.boxes_xyxy.tolist(), scene.areas_px, strict=True)
    ]
    return {"id": image_id, "file_name": name, "width": hw[1], "height": hw[0]}, boxes


def _box_record(image_id: int, box_xyxy: list[float], area_px: float) -> dict[str, Any]:
    x1, y1, x2, y2 = box_xyxy
    box_xywh = [x1, y1, x2 - x1, y2 - y1]
    return {"image_id": image_id, "category_id": 1, "bbox": box_xywh, "area": area_px, "iscrowd": 0}


def _coco_text(images: list[dict[str, Any]], boxes: list[dict[str, Any]]) -> str:
    annotations = [{"id": number, **box} for number, box in enumerate(boxes, start=1)]
    categories = [{"id": 1, "name": "object"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def _video_coco_text(boxes: list[npt.NDArray[np.float32]], hw: tuple[int, int]) -> str:
    images = [{"id": i, "file_name": f"{i:06d}", "width": hw[1], "height": hw[0]} for i in range(len(boxes))]
    records = [
        _box_record(image_id, box, (box[2] - box[0]) * (box[3] - box[1]))
        for image_id, frame_boxes in enumerate(boxes)
        for box in frame_boxes.tolist()
    ]
    return _coco_text(images, records)


def _frames(
    rng: np.random.Generator, num_frames: int, fps: float, hw: tuple[int, int], num_objects: int
) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]]:
    """Draws each frame with its boxes."""
    light = draw_light(rng)
    pan_px = np.array([0.18 * hw[1], 0.08 * hw[0]])
    margin = np.ceil(pan_px).astype(int) + 1
    world = draw_background(rng, (hw[0] + 2 * int(margin[1]), hw[1] + 2 * int(margin[0])))
    actors = [_draw_actor(rng, hw, place) for place in _spread(rng, num_objects)]
    # Large things lie below small ones, which they would hide otherwise.
    actors.sort(key=lambda actor: -actor.sprite.normals_xy.size)
    grain = rng.normal(0, 3, (hw[0] + 64, hw[1] + 64, 1)).repeat(3, axis=2).round().astype(np.int8)
    cycles, phase = rng.uniform(0.04, 0.09, 2), rng.uniform(0, 2 * np.pi, 2)
    for index in range(num_frames):
        camera_xy = pan_px * np.sin(2 * np.pi * cycles * index / fps + phase)
        center_xy = (np.array([hw[1], hw[0]]) - 1) / 2 + margin + camera_xy
        canvas = np.asarray(cv2.getRectSubPix(world, (hw[1], hw[0]), tuple(center_xy)), np.float32)
        boxes = _draw_actors(canvas, actors, light, index / fps, camera_xy)
        dx, dy = rng.integers(0, 64, 2)
        frame = cv2.add(canvas, grain[dy : dy + hw[0], dx : dx + hw[1]], dtype=cv2.CV_8U)
        yield np.asarray(frame, np.uint8), boxes


def _draw_actors(
    canvas: FloatImage, actors: list[_Actor], light: Light, time_s: float, camera_xy: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Pastes every actor onto the canvas, in place; returns the boxes of what can be seen of them."""
    owners = np.zeros(canvas.shape[:2], np.int16)
    areas_px = {}
    for number, actor in enumerate(actors, start=1):
        scale, angle, center_xy = actor.pose(time_s, camera_xy)
        sprite, left_top = transform(actor.sprite, scale=scale, angle=angle, center_xy=center_xy)
        paste(canvas, owners, sprite, left_top=left_top, light=light, number=number)
        areas_px[number] = sprite.area_px
    return np.array([box for _, box, _ in visible_boxes(owners, areas_px)], np.float32).reshape(-1, 4)


def _spread(rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """Points that fill the unit square evenly, (count, 2): the R2 sequence (Roberts 2018) from a random start."""
    return (rng.random(2) + np.arange(count)[:, None] * [0.7548776662, 0.5698402910]) % 1


def _draw_actor(rng: np.random.Generator, hw: tuple[int, int], place: npt.NDArray[np.float64]) -> _Actor:
    """Draws a thing and how it moves: some rest on the background, some swing, some cross the frame.

    `place` is where it starts, as x and y from 0 to 1.
    """
    size_px = log_uniform(rng, 2.5 * MIN_SIZE_PX, largest_px(hw))
    limits_px = (0.6 * hw[1], 0.8 * hw[0])
    angle = rng.normal(0, 0.5)
    sprite = draw_sprite(rng, draw_prototype(rng), size_px=size_px, angle=angle, max_wh_px=limits_px)
    is_resting = rng.random() < 0.25
    reach = 0.0 if is_resting else rng.choice([0.12, 0.3, 0.6], p=[0.4, 0.4, 0.2])
    return _Actor(
        sprite=sprite,
        start_xy=(0.08 + 0.84 * place) * (hw[1], hw[0]),
        swing_xy=reach * rng.uniform(0.4, 1, 2) * (hw[1], 0.7 * hw[0]),
        cycles=rng.uniform(0.05, 0.2, 4),
        phase=rng.uniform(0, 2 * np.pi, 4),
        tilt=0.0 if is_resting else rng.uniform(0, 1.2),
        min_scale=1.0 if is_resting else rng.uniform(0.5, 0.95),
        parallax=1.0 if is_resting else rng.uniform(0, 1),
    )
