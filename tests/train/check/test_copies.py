"""Near copies of images are found by hash and thumbnail, in bounded memory, and other pictures are not."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from edgerpn.train.check import copies
from edgerpn.train.check.copies import CopyGroups, find_copies, fingerprint

Image = npt.NDArray[np.uint8]


def picture(seed: int, width: int = 160, height: int = 120) -> Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def groups_of(images: list[Image]) -> CopyGroups:
    prints = [fingerprint(image) for image in images]
    hashes = np.array([one for one, _ in prints], np.uint64)
    return find_copies(hashes, np.stack([thumbnail for _, thumbnail in prints]))


def members(images: list[Image]) -> list[list[int]]:
    return [group.tolist() for group in groups_of(images).members()]


def test_the_hash_says_where_a_picture_becomes_brighter_to_the_right() -> None:
    ramp = np.tile(np.arange(0, 180, dtype=np.uint8)[None, :, None], (64, 1, 3))
    assert fingerprint(np.ascontiguousarray(ramp))[0] == 0xFFFF_FFFF_FFFF_FFFF
    assert fingerprint(np.ascontiguousarray(ramp[:, ::-1]))[0] == 0
    half = ramp.copy()
    half[:32] = ramp[:32, ::-1]
    assert fingerprint(half)[0] == 0x0000_0000_FFFF_FFFF


def test_pictures_compressed_resized_or_brightened_are_copies_and_others_are_not() -> None:
    one = picture(0)
    compressed = np.asarray(cv2.imdecode(cv2.imencode(".jpg", one, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 1), np.uint8)
    small = np.asarray(cv2.resize(one, (80, 60), interpolation=cv2.INTER_AREA), np.uint8)
    bright = np.clip(one.astype(np.int16) + 12, 0, 255).astype(np.uint8)
    images = [picture(1), one, picture(2), compressed, small, bright, picture(3)]
    assert members(images) == [[1, 3, 4, 5]]
    assert groups_of(images).nearest.tolist()[3:6] == [1, 1, 1]
    assert groups_of(images).nearest[0] == -1


def test_plain_pictures_are_copies_only_if_they_have_one_colour() -> None:
    shades = [np.full((40, 60, 3), level, np.uint8) for level in (0, 0, 90, 91, 255)]
    assert members(shades) == [[0, 1], [2, 3]]


def test_scenes_of_one_layout_are_not_copies() -> None:
    # The same sky over the same ground, with another object: equal hashes, but thumbnails that differ.
    scene = np.zeros((120, 160, 3), np.uint8)
    scene[:60] = 200
    first, second = scene.copy(), scene.copy()
    first[10:50, 20:140] = 120
    second[70:110, 20:140] = 120
    assert members([first, second, first.copy()]) == [[0, 2]]


@pytest.mark.parametrize("block", [2, 1024])
def test_the_groups_do_not_depend_on_the_size_of_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "_BLOCK", block)
    rng = np.random.default_rng(5)
    thumbnails = np.tile(rng.integers(0, 256, (20, 256), np.uint8), (3, 1))
    base = rng.integers(0, 1 << 63, 20, np.uint64)
    # One flipped bit in each of four parts of the hash leaves one of five parts whole.
    flipped = base ^ np.uint64(1 << 3 | 1 << 17 | 1 << 30 | 1 << 45)
    far = base ^ np.uint64(0b11111)
    found = find_copies(np.concatenate([base, flipped, far]), thumbnails)
    assert [group.tolist() for group in found.members()] == [[n, n + 20] for n in range(20)]


def test_no_images_have_no_groups() -> None:
    assert find_copies(np.zeros(0, np.uint64), np.zeros((0, 256), np.uint8)).members() == []
