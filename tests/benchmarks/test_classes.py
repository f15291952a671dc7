"""`python -m benchmarks.classes` on a set so small that a training takes seconds, and its peer's data."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from benchmarks.classes import __main__ as classes
from benchmarks.classes import side


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey pictures with a white and a black object, always in the same places, and a category without objects."""
    folder = tmp_path_factory.mktemp("data") / "squares"
    (folder / "images").mkdir(parents=True)
    for split, count in (("train", 8), ("val", 2)):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(count):
            picture = np.full((64, 64, 3), 90 + number, np.uint8)
            for category, (x, level) in {7: (4, 255), 9: (34, 0)}.items():
                picture[16:48, x : x + 26] = level
                row = {"image_id": number, "category_id": category, "bbox": [x, 16, 26, 32]}
                annotations.append({"id": len(annotations) + 1, **row})
            assert cv2.imwrite(str(folder / "images" / f"{split}-{number}.png"), picture)
            images.append({"id": number, "file_name": f"{split}-{number}.png", "width": 64, "height": 64})
        categories = [{"id": 5, "name": "unused"}, {"id": 7, "name": "white"}, {"id": 9, "name": "black"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def test_the_peer_sees_mirrored_boxes_and_numbers_classes_from_one(data: Path) -> None:
    images, rows, names = side.read_split(data, "train")
    assert names == {7: "white", 9: "black"}
    target = side.to_target(images[0], rows[0], {7: 1, 9: 2}, flip=True)
    assert target["boxes"].tolist() == [[34, 16, 60, 48], [4, 16, 30, 48]]
    assert target["labels"].tolist() == [1, 2]
    plain, mirrored = (side.to_tensor(data, images[0], flip) for flip in (False, True))
    assert plain.shape == (3, 64, 64)
    assert plain[:, 20, 5].tolist() == mirrored[:, 20, 58].tolist() == [1, 1, 1]


@pytest.mark.slow
def test_rows_are_measured_once_and_make_a_table(
    data: Path,
    tiny: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "classes.json"
    sets = [word for text in (*tiny, "model.region_channels=16", "data.input_hw=[64, 64]") for word in ("--set", text)]
    fixed = ["classes", "--data", str(data), "--out", str(out), "--minutes", "0.03", "--threads", "1", *sets]
    monkeypatch.setattr(sys, "argv", [*fixed, "--methods", "edge"])
    assert classes.main() == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["method"], row["data"], list(row["classes"])) == ("edge", "squares", ["white", "black"])
    assert 0 <= row["AP"] <= row["AP50"] <= 1
    assert row["images_seen"] > 0
    assert capsys.readouterr().out.startswith("edge, squares, seed 0: AP ")
    assert (
        "| method | seeds | AP | AP50 | AR@10 | AR@100 | AP50 white | AP50 black |"
        in out.with_suffix(".md").read_text()
    )
    assert classes.main() == 0
    assert capsys.readouterr().out == ""
