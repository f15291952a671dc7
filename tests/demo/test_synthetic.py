"""Made-up data: the ground truth is exact, the files are deterministic and are what `edgerpn train` expects."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgerpn.demo.synthetic import dataset as synthetic
from edgerpn.demo.synthetic.scene import PATTERNS, SHAPES, paste, rasterize, render_scene, visible_objects

SQUARE = [[np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])]]


def flat_sprite(height: int, width: int, color: float = 200.0) -> np.ndarray:
    sprite = np.full((height, width, 4), color, np.float32)
    sprite[..., 3] = 1
    return sprite


@pytest.mark.parametrize("seed", range(6))
def test_boxes_are_tight_around_the_visible_pixels(seed: int) -> None:
    scene = render_scene(np.random.default_rng(seed), (192, 320))
    assert len(scene.objects) > 0
    for number, (x1, y1, x2, y2), area in scene.objects:
        visible = scene.owners == number
        inside = visible[y1:y2, x1:x2]
        assert inside.sum() == visible.sum() == area
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()


def test_objects_come_in_many_sizes_and_number() -> None:
    scenes = [render_scene(np.random.default_rng(seed), (192, 320)) for seed in range(12)]
    boxes = np.array([item.box_xyxy for scene in scenes for item in scene.objects])
    size_px = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    assert len({len(scene.objects) for scene in scenes}) > 4
    assert size_px.min() < 16
    assert size_px.max() > 80


def test_an_object_of_which_less_than_a_quarter_is_seen_has_no_box() -> None:
    owners = np.zeros((40, 40), np.int16)
    owners[2:12, 3:23] = 1
    owners[20:30, 3:23] = 2
    # Of 100 pixels of object 3, 24 are seen; of object 4, 25.
    owners[32:38, 30:34] = 3
    owners[10:15, 30:35] = 4
    found = visible_objects(owners, {1: 200.0, 2: 200.0, 3: 100.0, 4: 100.0, 5: 10.0})
    assert found == [(1, (3, 2, 23, 12), 200), (2, (3, 20, 23, 30), 200), (4, (30, 10, 35, 15), 25)]


def test_the_upper_object_owns_the_pixels_and_the_frame_cuts_boxes() -> None:
    canvas, owners = np.zeros((30, 40, 3), np.float32), np.zeros((30, 40), np.int16)
    paste(canvas, owners, flat_sprite(10, 20, 100.0), left_top=(-5, 4), number=1)
    paste(canvas, owners, flat_sprite(10, 10, 200.0), left_top=(10, 8), number=2)
    boxes = {number: box for number, box, _ in visible_objects(owners, {1: 200.0, 2: 100.0})}
    assert boxes == {1: (0, 4, 15, 14), 2: (10, 8, 20, 18)}
    assert canvas[5, 3].tolist() == [100, 100, 100]
    assert canvas[10, 12].tolist() == [200, 200, 200]
    assert canvas[25, 30].tolist() == [0, 0, 0]


def test_a_sprite_outside_the_frame_changes_nothing() -> None:
    canvas, owners = np.full((20, 20, 3), 7, np.float32), np.zeros((20, 20), np.int16)
    for left_top in ((-60, 5), (60, 5), (5, -60), (5, 60)):
        paste(canvas, owners, flat_sprite(10, 10), left_top=left_top, number=1)
    assert not owners.any()
    assert (canvas == 7).all()


def test_a_square_is_rasterized_to_the_pixels_it_covers() -> None:
    mask = rasterize(SQUARE, size_px=20, angle=0, max_wh_px=(99, 99))
    assert mask.shape == (24, 24)
    rows, columns = np.nonzero(mask >= 0.5)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 21, 2, 21)


@pytest.mark.parametrize("draw", SHAPES)
def test_every_shape_has_the_size_that_is_asked_for(draw) -> None:
    shape = draw(np.random.default_rng(3))
    mask = rasterize(shape, size_px=60, angle=0.7, max_wh_px=(500, 500))
    rows, columns = np.nonzero(mask >= 0.5)
    box_px = np.sqrt((np.ptp(rows) + 1) * (np.ptp(columns) + 1))
    assert box_px == pytest.approx(60, abs=4)


def test_a_shape_that_is_too_long_is_shrunk_to_fit() -> None:
    mask = rasterize(SQUARE, size_px=100, angle=0, max_wh_px=(300, 80))
    assert mask.shape == (84, 84)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("hw", [(64, 96), (9, 7)])
def test_every_pattern_fills_zero_to_one(pattern, hw: tuple[int, int]) -> None:
    values = pattern(np.random.default_rng(5), hw)
    assert values.shape == hw
    assert values.dtype == np.float32
    assert values.min() >= 0
    assert values.max() <= 1
    assert hw == (9, 7) or np.ptp(values) > 0.5


def test_a_quarter_turn_turns_the_pixels_of_a_sprite() -> None:
    sprite = np.random.default_rng(0).random((12, 18, 4), np.float32)
    turned, (left, top) = synthetic.transform(sprite, scale=1, angle=np.pi / 2, center_xy=(50, 40))
    # The middle of an 18 x 12 patch falls on a pixel corner, so no interpolation is left.
    y, x = 40 - 9 - top, 50 - 6 - left
    np.testing.assert_allclose(turned[y : y + 18, x : x + 12], np.rot90(sprite, -1), atol=1e-3)


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def test_a_seed_fixes_every_byte_and_another_seed_changes_them(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        synthetic.write_dataset(tmp_path / name, num_train=2, num_val=1, hw=(96, 160), seed=seed)
    first, second, other = (all_bytes(tmp_path / name) for name in "abc")
    assert first == second
    assert all(first[name] != other[name] for name in first)


def test_more_training_images_change_neither_the_first_ones_nor_the_validation_set(tmp_path: Path) -> None:
    synthetic.write_dataset(tmp_path / "few", num_train=1, num_val=1, hw=(96, 160), seed=0)
    synthetic.write_dataset(tmp_path / "more", num_train=2, num_val=1, hw=(96, 160), seed=0)
    few, more = all_bytes(tmp_path / "few"), all_bytes(tmp_path / "more")
    assert more.keys() - few.keys() == {"images/train_00001.jpg"}
    assert all(few[name] == more[name] for name in few if name != "train.json")


def test_the_dataset_is_consistent_coco(tmp_path: Path) -> None:
    synthetic.write_dataset(tmp_path, num_train=3, num_val=2, hw=(96, 160), seed=1)
    for split, count in (("train", 3), ("val", 2)):
        coco = json.loads((tmp_path / f"{split}.json").read_text())
        images = {image["id"]: image for image in coco["images"]}
        assert len(images) == count
        for image in images.values():
            assert cv2.imread(str(tmp_path / "images" / image["file_name"])).shape == (96, 160, 3)
            assert (image["height"], image["width"]) == (96, 160)
        assert len({box["id"] for box in coco["annotations"]}) == len(coco["annotations"])
        for box in coco["annotations"]:
            x, y, width, height = box["bbox"]
            assert 0 <= x < x + width <= 160
            assert 0 <= y < y + height <= 96
            assert 0 < box["area"] <= width * height
            assert box["image_id"] in images
        assert coco["annotations"]


def test_the_video_plays_and_its_ground_truth_moves_smoothly(tmp_path: Path) -> None:
    made = synthetic.write_video(
        tmp_path / "v.mp4", num_frames=8, fps=25, hw=(144, 256), seed=2, num_objects=6, annotations=tmp_path / "v.json"
    )
    capture = cv2.VideoCapture(str(made.path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    assert [frame.shape for frame in frames] == [(144, 256, 3)] * 8
    assert capture.get(cv2.CAP_PROP_FPS) == 25
    assert len(made.boxes_xyxy) == 8
    assert any(np.any(a != b) for a, b in itertools.pairwise(frames))
    moves_px = [
        np.abs(after - before).max()
        for before, after in itertools.pairwise(made.boxes_xyxy)
        if before.shape == after.shape
    ]
    assert moves_px
    assert 0 < max(moves_px) < 30
    coco = json.loads((tmp_path / "v.json").read_text())
    assert len(coco["annotations"]) == sum(len(boxes) for boxes in made.boxes_xyxy)
