"""Vectors of classes from annotated examples: those of the proposals that lie on them, as `classify` reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgerpn.errors import ConfigError, DataError
from edgerpn.export import write_class_vectors
from edgerpn.runtime.sinks.text_vectors import read_text_vectors
from tests.support.models import ANGLES, paint_frame

Make = Callable[..., Any]


def write_examples(folder: Path, boxes: list[tuple[str, list[int]]]) -> Path:
    """A data set of pictures with three proposals: [40, 40, 120, 120], and smaller ones by 2 pixels a side each."""
    (folder / "images").mkdir(parents=True)
    names = sorted({name for name, _ in boxes})
    for number in range(len(boxes)):
        cv2.imwrite(str(folder / "images" / f"{number}.png"), paint_frame(count=3))
    images = [{"id": i, "file_name": f"{i}.png", "width": 320, "height": 192} for i in range(len(boxes))]
    rows = [
        {"id": i + 1, "image_id": i, "category_id": names.index(name) + 1, "bbox": box, "area": 1.0, "iscrowd": 0}
        for i, (name, box) in enumerate(boxes)
    ]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    text = json.dumps({"images": images, "annotations": rows, "categories": categories})
    (folder / "instances.json").write_text(text)
    return folder / "instances.json"


@pytest.mark.parametrize("kind", ["features", "embeddings"])
def test_the_vector_of_a_class_is_that_of_the_proposals_on_its_examples(
    kind: Any, make_model: Make, tmp_path: Path
) -> None:
    cup, lid, far = [40, 40, 80, 80], [42, 42, 76, 76], [200, 20, 60, 60]
    data = write_examples(tmp_path / "data", [("cup", cup), ("lid", lid), ("tree", far), ("cup", cup), ("cup", cup)])
    model = make_model(tmp_path, is_described=True)
    lines: list[str] = []
    counts = write_class_vectors(model, data, tmp_path / "a.npz", vectors=kind, max_examples=2, log=lines.append)
    assert counts == {"cup": 2, "lid": 1}
    assert any("tree: left out, because the model proposes no example of it" in line for line in lines)
    texts = read_text_vectors(tmp_path / "a.npz")
    assert texts.names == ("cup", "lid")
    np.testing.assert_allclose(texts.cosines(ANGLES[:2]), [[1, -1], [-1, 1]], atol=1e-5)


def test_a_single_class_keeps_its_whole_vector(make_model: Make, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "data", [("cup", [40, 40, 80, 80]), ("lid", [42, 42, 76, 76])])
    content = json.loads(data.read_text())
    # A box without a class is an example of none.
    del content["annotations"][1]["category_id"]
    data.write_text(json.dumps(content))
    write_class_vectors(make_model(tmp_path, is_described=True), data, tmp_path / "a.npz")
    texts = read_text_vectors(tmp_path / "a.npz")
    np.testing.assert_allclose(texts.cosines(ANGLES[:1]), [[1]], atol=1e-5)
    assert texts.cosines(ANGLES[2:3])[0, 0] < 0.99


def test_a_model_without_vectors_and_examples_without_proposals_are_refused(make_model: Make, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "data", [("tree", [200, 20, 60, 60])])
    with pytest.raises(ConfigError, match=r"bright.onnx: does not have features; export it again with --roi-features"):
        write_class_vectors(make_model(tmp_path), data, tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"instances.json: the model proposes no example of any class"):
        write_class_vectors(make_model(tmp_path, is_described=True), data, tmp_path / "a.npz")
    data.write_text(data.read_text().replace('"category_id": 1, ', ""))
    with pytest.raises(DataError, match=r"instances.json: none of its objects has a class; expected named categories"):
        write_class_vectors(make_model(tmp_path, is_described=True), data, tmp_path / "a.npz")
    assert not (tmp_path / "a.npz").exists()
