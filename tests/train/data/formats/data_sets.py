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


def write_open_images(boxes: Path, images: Path, count: int) -> None:
    """The same in Open Images."""
    boxes.parent.mkdir(parents=True, exist_ok=True)
    lines = ["ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"]
    for number in range(count):
        write_image(images / f"{number}.png")
        lines.append(f"{number},xclick,/m/0ch_cf,1,0.25,0.75,0.25,0.75,0,0,0")
    boxes.write_text("\n".join(lines) + "\n")
    (boxes.parent / "class-descriptions-boxable.csv").write_text("/m/0ch_cf,fish\n/m/0n28_,crab\n")


def labelme_file(name: str, *shapes: tuple[str, str, list[list[object]]]) -> str:
    rows = [{"label": label, "shape_type": kind, "points": points, "flags": {}} for label, kind, points in shapes]
    path = f"..\\photos\\{name}"
    return json.dumps(
        {"shapes": rows, "imagePath": path, "imageHeight": HEIGHT, "imageWidth": WIDTH, "imageData": None}
    )


def write_labelme(folder: Path, count: int) -> None:
    """The same in LabelMe."""
    for number in range(count):
        write_image(folder / f"{number}.png")
        text = labelme_file(f"{number}.png", ("fish", "rectangle", [[30, 15], [10, 5]]))
        (folder / f"{number}.json").write_text(text)


def write_cvat(file: Path, images: Path, count: int) -> None:
    """The same in CVAT."""
    rows = []
    for number in range(count):
        write_image(images / f"{number}.png")
        box = '<box label="fish" occluded="0" xtl="10" ytl="5" xbr="30" ybr="15" z_order="0"></box>'
        rows.append(f'<image id="{number}" name="{number}.png" width="{WIDTH}" height="{HEIGHT}">{box}</image>')
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("fish", "crab"))
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    file.write_text(f"<annotations><version>1.1</version>{meta}{''.join(rows)}</annotations>")


def label_studio_task(number: int, image: str, *results: dict[str, object]) -> dict[str, object]:
    return {"id": number, "annotations": [{"result": list(results), "was_cancelled": False}], "data": {"image": image}}


def label_studio_result(kind: str, label: str, **value: object) -> dict[str, object]:
    sizes = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return {**sizes, "type": kind, "value": {**value, kind: [label]}}


def write_label_studio(file: Path, images: Path, count: int) -> None:
    """The same in Label Studio."""
    tasks = []
    for number in range(count):
        write_image(images / f"{number}.png")
        box = label_studio_result("rectanglelabels", "fish", x=25, y=25, width=50, height=50, rotation=0)
        tasks.append(label_studio_task(number, f"/data/upload/1/0a1b2c3d-{number}.png", box))
    file.write_text(json.dumps(tasks))
