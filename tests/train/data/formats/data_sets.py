"""Small data sets of each format; pictures are 40 x 20 pixels."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

WIDTH, HEIGHT = 40, 20


def write_image(file: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), np.full((height, width, 3), 99, np.uint8))


def write_coco(file: Path, images: Path, count: int) -> None:
    """One fish at 10, 5, 20, 10 in each of 0.png, 1.png, ..."""
    for number in range(count):
        write_image(images / f"{number}.png")
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [
            {"id": number, "file_name": f"{number}.png", "width": WIDTH, "height": HEIGHT} for number in range(count)
        ],
        "annotations": [
            {"id": number + 1, "image_id": number, "category_id": 4, "bbox": [10, 5, 20, 10]} for number in range(count)
        ],
        "categories": [{"id": 4, "name": "fish"}, {"id": 7, "name": "crab"}],
    }
    file.write_text(json.dumps(content))


def write_yolo(images: Path, labels: Path, count: int) -> None:
    """The same in YOLO."""
    labels.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_image(images / f"{number}.png")
        (labels / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n")


def voc_object(name: str, corners: tuple[object, ...], extra: str = "") -> str:
    box = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    )
    return f"<object><name>{name}</name>{extra}<bndbox>{box}</bndbox></object>"


def voc_file(name: str, *objects: str, size: tuple[object, object] | None = (WIDTH, HEIGHT)) -> str:
    sizes = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    return f"<annotation><filename>{name}</filename>{sizes}{''.join(objects)}</annotation>"


def write_voc(images: Path, xml: Path, count: int) -> None:
    """The same in PASCAL VOC."""
    xml.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_image(images / f"{number}.png")
        (xml / f"{number}.xml").write_text(voc_file(f"{number}.png", voc_object("fish", (11, 6, 30, 15))))
