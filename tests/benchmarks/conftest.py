"""Tiny data sets with a known answer, and a network on which a training takes seconds."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

LEFT, RIGHT = [4, 16, 32, 32], [36, 0, 24, 24]
"""Places of the object, x y width height in pixels."""
SETS = {"birds": LEFT, "cups": LEFT, "cars": RIGHT, "dogs": RIGHT}


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four COCO sets of ten grey pictures with one white object; two pictures come from each source."""
    folder = tmp_path_factory.mktemp("sets")
    for name, (x, y, width, height) in SETS.items():
        (folder / name / "images").mkdir(parents=True)
        images, annotations = [], []
        for number in range(1, 11):
            picture = np.full((64, 64, 3), 90 + number, np.uint8)
            picture[y : y + height, x : x + width] = 255
            file = f"{name}-{number}.png"
            assert cv2.imwrite(str(folder / name / "images" / file), picture)
            source = f"photo-{(number + 1) // 2}"
            images.append({"id": number, "file_name": file, "width": 64, "height": 64, "source": source})
            annotations.append({"id": number, "image_id": number, "category_id": 7, "bbox": [x, y, width, height]})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": name}]}
        (folder / name / "instances.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Settings of a training of seconds."""
    return (
        "model.anchors={strides_px=[8, 16], sizes_px=[[16.0], [32.0]]}",
        "model.stage_channels=[4, 8, 8, 8]",
        "model.stage_blocks=[0, 0, 0, 0]",
        "model.neck_channels=8",
        "model.head_channels=8",
        "data.batch_size=4",
        "data.workers=0",
        "data.view_sides_px=[]",
        "loop.threads=1",
        "loop.device=cpu",
        "loop.log_every=1",
    )
