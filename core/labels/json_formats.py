"""Writers of COCO and Label Studio files."""

from __future__ import annotations

import json
import shutil
from typing import IO, Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from edgerpn.labels.writing import Label, LabelledImage, LabelWriter


class _JsonList:
    """A JSON array that grows in a file."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._file.write("[")
        self.count = 0

    def append(self, entry: dict[str, Any]) -> None:
        self._file.write(",\n" if self.count else "\n")
        self._file.write(json.dumps(entry, ensure_ascii=False))
        self.count += 1

    def close(self) -> None:
        self._file.write("\n]\n")


class _CocoFile:
    """The file of one split: images go into it, annotations into a temporary file that is appended at the end."""

    def __init__(self, file: IO[str], spool: IO[str], categories: tuple[str, ...]) -> None:
        self._file, self._spool = file, spool
        entries = [{"id": number, "name": name} for number, name in enumerate(categories, start=1)]
        file.write(f'{{"categories": {json.dumps(entries, ensure_ascii=False)},\n"images": ')
        self.images = _JsonList(file)
        self.annotations = _JsonList(spool)

    def close(self) -> None:
        self.images.close()
        self.annotations.close()
        self._file.write(',"annotations": ')
        self._spool.seek(0)
        shutil.copyfileobj(self._spool, self._file)
        self._file.write("}\n")


class CocoWriter(LabelWriter):
    """COCO: train.json, val.json, and the images in images/train/, images/val/.

    Categories are numbered from 1. Scores are an additional key of the annotations, regions to ignore are crowds.
    """

    title = "COCO"
    holds_ignored = True

    def _begin(self) -> None:
        self._splits: dict[str, _CocoFile] = {}

    def _image_path(self, name: str, split: str) -> str:
        return f"images/{split}/{name}"

    def _write(self, image: LabelledImage, labels: list[Label], name: str, split: str) -> None:
        file = self._splits.get(split) or self._open(split)
        image_id = file.images.count + 1 if image.image_id is None else image.image_id
        width, height = image.size_wh
        file.images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for label in labels:
            x1, y1, x2, y2 = label.box_xyxy
            entry = {
                "id": file.annotations.count + 1,
                "image_id": image_id,
                "category_id": label.category + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": int(label.is_ignored),
            }
            if label.score is not None:
                entry["score"] = label.score
            file.annotations.append(entry)

    def _open(self, split: str) -> _CocoFile:
        spool = self._text_file(f"{split}.annotations")
        return self._splits.setdefault(split, _CocoFile(self._text_file(f"{split}.json"), spool, self.categories))

    def _finish(self) -> None:
        for split, file in self._splits.items():
            file.close()
            (self._partial / f"{split}.annotations").unlink()


class LabelStudioWriter(LabelWriter):
    """Label Studio: tasks.json to import, label_config.xml for the labelling interface, and images/.

    Boxes with scores are predictions (pre-annotations), others annotations. Images are named as files of Label Studio's
    local storage whose document root is the folder of the set. A task's "split" names its split.
    """

    title = "Label Studio"

    def _begin(self) -> None:
        self._tasks = _JsonList(self._text_file("tasks.json"))

    def _image_path(self, name: str, split: str) -> str:
        return f"images/{name}"

    def _write(self, image: LabelledImage, labels: list[Label], name: str, split: str) -> None:
        results = [
            self._result(label, image.size_wh, f"{self.num_images + 1}-{number}") for number, label in enumerate(labels)
        ]
        made: dict[str, Any] = {"result": results}
        if image.scores is not None:
            made |= {"model_version": "edgerpn", "score": max((label.score or 0.0 for label in labels), default=0.0)}
        url = f"/data/local-files/?d={quote(self._image_path(name, split))}"
        key = "annotations" if image.scores is None else "predictions"
        self._tasks.append({"data": {"image": url, "split": split}, key: [made]})

    def _result(self, label: Label, size_wh: tuple[int, int], result_id: str) -> dict[str, Any]:
        (width, height), (x1, y1, x2, y2) = size_wh, label.box_xyxy
        result = {
            "id": result_id,
            "type": "rectanglelabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "x": 100 * x1 / width,
                "y": 100 * y1 / height,
                "width": 100 * (x2 - x1) / width,
                "height": 100 * (y2 - y1) / height,
                "rotation": 0,
                "rectanglelabels": [self.categories[label.category]],
            },
        }
        return result if label.score is None else {**result, "score": label.score}

    def _finish(self) -> None:
        self._tasks.close()
        rows = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in self.categories)
        config = (
            '<View>\n  <Image name="image" value="$image"/>\n  <RectangleLabels name="label" toName="image">\n'
            f"{rows}  </RectangleLabels>\n</View>\n"
        )
        self._text_file("label_config.xml").write(config)
