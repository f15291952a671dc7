"""The cache of decoded images: the same batches with it and without, and no more decoding than documented."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from edgerpn.errors import DataError
from edgerpn.train.data import image_cache
from edgerpn.train.data.augment import AugmentConfig, draw_view, scale_limits
from edgerpn.train.data.coco import ImageRecord
from edgerpn.train.data.image_cache import ImageCache, cache_bytes, reduction_for
from edgerpn.train.data.loader import DataConfig, TrainLoader

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
CONFIG = DataConfig(input_hw=(64, 96), batch_size=4, workers=0)
LARGE = 1 << 26


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRecord]:
    """Eight large JPEG files, of which views need halves and quarters, and two PNG files."""
    folder = tmp_path_factory.mktemp("images")
    made = []
    for number in range(10):
        rng = np.random.default_rng(number)
        small = rng.integers(0, 255, (13, 20, 3), dtype=np.uint8)
        pixels = cv2.resize(small, (401, 263), interpolation=cv2.INTER_CUBIC)
        # Also a file whose suffix does not fit its content.
        file = folder / f"{number}.{'png' if number in (7, 8) else 'JPG'}"
        encoded = cv2.imencode(".png" if number in (8, 9) else ".jpg", pixels)[1]
        file.write_bytes(encoded.tobytes())
        boxes = np.array([[20, 30, 200, 220]], np.float32)
        made.append(
            ImageRecord(
                image_id=number,
                file=file,
                hw=(263, 401),
                boxes_xyxy=boxes,
                ignore_xyxy=np.zeros((0, 4), np.float32),
                box_classes=np.zeros(1, np.int64),
            )
        )
    return made


def images(records: Sequence[ImageRecord], workers: int, size_bytes: int, epochs: int = 3) -> list[torch.Tensor]:
    config = DataConfig(input_hw=CONFIG.input_hw, batch_size=5, workers=workers)
    with TrainLoader(records, config, seed=3, cache_bytes=size_bytes) as loader:
        return [batch.images.clone() for epoch in range(epochs) for batch in loader.epoch(epoch)]


@pytest.mark.parametrize(("workers", "size_bytes"), [(0, LARGE), (2, LARGE), (0, 300_000)])
def test_batches_are_the_same_with_a_cache_and_without(
    records: list[ImageRecord], workers: int, size_bytes: int
) -> None:
    expected = images(records, 0, 0)
    found = images(records, workers, size_bytes)
    assert len(found) == len(expected) == 6
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_an_image_is_decoded_once_for_each_reduction(records: list[ImageRecord], tmp_path: Path) -> None:
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(records[0].file.read_bytes())
    record = ImageRecord(
        image_id=0, file=copy, hw=(263, 401), boxes_xyxy=records[0].boxes_xyxy, ignore_xyxy=records[0].ignore_xyxy
    )
    cache = ImageCache([record], AugmentConfig(), CONFIG.input_hw, size_bytes=LARGE)
    first, reduction = cache.read(0, copy, 2)
    assert reduction == 2
    assert first.shape == (132, 201, 3)
    assert cache.num_filled == 1
    copy.unlink()
    again, _ = cache.read(0, copy, 2)
    assert np.array_equal(again, first)
    assert not again.flags.writeable
    with pytest.raises(DataError, match="cannot be read"):
        cache.read(0, copy, 4)


def test_without_memory_every_image_is_decoded_every_time(records: list[ImageRecord]) -> None:
    cache = ImageCache(records, AugmentConfig(), CONFIG.input_hw)
    cache.read(0, records[0].file, 2)
    assert (cache.num_filled, cache.size_bytes) == (0, 0)


def test_the_reductions_of_all_views_are_foreseen() -> None:
    config = AugmentConfig()
    low, high = scale_limits(config, (263, 401), (64, 96))
    rng = np.random.default_rng(0)
    scales = [max(draw_view(config, rng).scale_xy((263, 401), (64, 96))) for _ in range(500)]
    assert low <= min(scales) < 1.1 * low
    assert high >= max(scales) > high / 1.1
    assert [reduction_for(scale) for scale in (0.1, 0.125, 0.126, 0.25, 0.3, 0.5, 0.6, 2.0)] == [8, 8, 4, 4, 2, 2, 1, 1]


def test_automatic_caches_are_whole_or_not_there(records: list[ImageRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    def size(limit_bytes: int, *, is_whole: bool, processes: int = 1) -> int:
        return cache_bytes(
            records,
            CONFIG.augment,
            CONFIG.input_hw,
            limit_bytes=limit_bytes,
            is_whole=is_whole,
            num_processes=processes,
        )

    needed = size(LARGE, is_whole=True)
    assert 100_000 < needed < 10_000_000
    assert size(needed, is_whole=True) == needed
    assert size(needed - 1, is_whole=True) == 0
    assert size(needed - 1, is_whole=False) == needed - 1
    assert size(2 * needed - 2, is_whole=True, processes=2) == 0
    # A quarter of what is free, so that others keep room.
    monkeypatch.setattr(image_cache, "available_bytes", lambda: 4 * needed - 4)
    assert size(LARGE, is_whole=True) == 0
