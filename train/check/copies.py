"""Copies and near copies of images, by a perceptual hash and a thumbnail of each.

Two images are near copies if their hashes differ in few bits and their thumbnails correlate: the same picture
compressed or resized again or brightened, or neighbouring frames of a calm video. The hash compares the brightness of
neighbours (dHash) and finds candidates fast; the thumbnail tells apart scenes of one layout.

Memory is bounded: 8 + 256 bytes an image, and blocks of `_BLOCK` x `_BLOCK` comparisons.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

_THUMBNAIL_PX = 16
_MAX_BITS = 4
"""Bits in which the hashes of near copies differ, at most."""
_BANDS = (0, 13, 26, 39, 52, 64)
"""First bits of the parts of a hash. Near copies agree in at least one of these `_MAX_BITS` + 1 parts."""
_LEAST_CORRELATION = 0.993
"""Correlation of the thumbnails of near copies, at least. On photographs, 99 % of the copies in JPEG quality 40, at
half the size or brightened by a tenth reach it; other wagons at one place of a track reach 0.991."""
_PLAIN_LEVELS = 2.0
"""Standard deviation of a plain thumbnail, and the difference between two of one colour, grey levels."""
_MAX_FORMS = 64
"""Thumbnails of one hash that are compared with each other, at most."""
_BLOCK = 1024
_BIT_COUNTS = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)

Hashes = npt.NDArray[np.uint64]
Thumbnails = npt.NDArray[np.uint8]


def fingerprint(image: npt.NDArray[np.uint8]) -> tuple[int, npt.NDArray[np.uint8]]:
    """Returns the 64-bit hash of an image (H, W, 3) and its thumbnail (256,) of grey levels."""
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    thumbnail = cv2.resize(grey, (_THUMBNAIL_PX, _THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    return int.from_bytes(bits.tobytes(), "big"), np.asarray(thumbnail, np.uint8).reshape(-1)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CopyGroups:
    """Groups of near copies among N images."""

    group: npt.NDArray[np.int64]
    """(N,) number of the group of each image: the position of its first member."""
    nearest: npt.NDArray[np.int64]
    """(N,) position of the first near copy before each image, or of the first image of its hash; -1: none."""

    def members(self) -> list[npt.NDArray[np.int64]]:
        """Returns the positions of the images of each group of at least two, the largest group first."""
        order = np.argsort(self.group, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(self.group[order])) + 1) if len(order) else []
        return sorted((one for one in groups if len(one) > 1), key=lambda one: (-len(one), one[0]))


def find_copies(hashes: Hashes, thumbnails: Thumbnails) -> CopyGroups:
    """Groups near copies; a group holds images that are linked by a chain of near copies.

    Args:
        hashes: (N,) hashes.
        thumbnails: (N, 256) thumbnails.
    """
    parent, nearest = np.arange(len(hashes)), np.full(len(hashes), -1)
    for first, second in _links(hashes, thumbnails):
        nearest[second] = first if nearest[second] < 0 else min(first, nearest[second])
        low, high = sorted((_root(parent, first), _root(parent, second)))
        parent[high] = low
    while not np.array_equal(parent, parent[parent]):
        parent = parent[parent]
    return CopyGroups(group=parent, nearest=nearest)


def _links(hashes: Hashes, thumbnails: Thumbnails) -> Iterator[tuple[int, int]]:
    """Yields pairs of near copies that link every group."""
    forms = []
    order = np.argsort(hashes, kind="stable")
    for same in np.split(order, np.flatnonzero(np.diff(hashes[order])) + 1) if len(order) else []:
        # Images of one hash are compared with one another first: many pictures may be plain.
        left = same
        for _ in range(_MAX_FORMS):
            near = _is_like(thumbnails[left[0]], thumbnails[left])
            yield from ((int(left[0]), int(one)) for one in left[near][1:])
            forms.append(left[0])
            left = left[~near]
            if not len(left):
                break
    rows = np.sort(np.array(forms, np.int64))
    for start, end in itertools.pairwise(_BANDS):
        yield from _links_in_band(rows, hashes, thumbnails, start, end)


def _links_in_band(
    rows: npt.NDArray[np.int64], hashes: Hashes, thumbnails: Thumbnails, start: int, end: int
) -> Iterator[tuple[int, int]]:
    """Yields near copies among images whose hashes agree in the bits from `start` to `end`."""
    part = (hashes[rows] >> np.uint64(start)) & np.uint64((1 << (end - start)) - 1)
    order = np.argsort(part, kind="stable")
    for bucket in np.split(rows[order], np.flatnonzero(np.diff(part[order])) + 1):
        for begin in range(0, len(bucket), _BLOCK):
            block = bucket[begin : begin + _BLOCK]
            for other in range(0, begin + 1, _BLOCK):
                earlier = bucket[other : other + _BLOCK]
                # Each image is linked with the first near copy before it, which keeps the number of links small.
                near = _bit_distances(hashes[block], hashes[earlier]) <= _MAX_BITS
                near &= earlier[None, :] < block[:, None]
                yield from _first_true(near, block, earlier, thumbnails)


def _first_true(
    near: npt.NDArray[np.bool_],
    block: npt.NDArray[np.int64],
    earlier: npt.NDArray[np.int64],
    thumbnails: Thumbnails,
) -> Iterator[tuple[int, int]]:
    for row in np.flatnonzero(near.any(axis=1)).tolist():
        candidates = earlier[near[row]]
        like = _is_like(thumbnails[block[row]], thumbnails[candidates])
        if like.any():
            yield int(candidates[np.argmax(like)]), int(block[row])


def _bit_distances(first: Hashes, second: Hashes) -> npt.NDArray[np.uint8]:
    """Returns the numbers of bits in which hashes (A,) and (B,) differ, (A, B)."""
    bits = (first[:, None] ^ second[None, :]).view(np.uint16).reshape(len(first), len(second), 4)
    return _BIT_COUNTS[bits].sum(axis=2, dtype=np.uint8)


def _is_like(one: Thumbnails, others: Thumbnails) -> npt.NDArray[np.bool_]:
    """Returns which thumbnails (B, 256) show the same as one (256,)."""
    first, second = one.astype(np.float32), others.astype(np.float32)
    means = second.mean(axis=1)
    first_spread, second_spread = first.std(), second.std(axis=1)
    covariance = ((first - first.mean()) * (second - means[:, None])).mean(axis=1)
    is_plain = np.maximum(first_spread, second_spread) < _PLAIN_LEVELS
    is_same_colour = np.abs(means - first.mean()) <= _PLAIN_LEVELS
    correlates = covariance >= _LEAST_CORRELATION * np.maximum(first_spread * second_spread, 1e-6)
    return np.where(is_plain, is_same_colour, correlates)


def _root(parent: npt.NDArray[np.int64], row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = int(parent[row])
    return row
